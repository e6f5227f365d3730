//! The languages of Whisper, in the order of their tokens.

/// (code, name in English), in the order of the tokens `<|en|>`, `<|zh|>` ...; the last came with large-v3.
pub const LANGUAGES: [(&str, &str); 100] = [
    ("en", "english"),
    ("zh", "chinese"),
    ("de", "german"),
    ("es", "spanish"),
    ("ru", "russian"),
    ("ko", "korean"),
    ("fr", "french"),
    ("ja", "japanese"),
    ("pt", "portuguese"),
    ("tr", "turkish"),
    ("pl", "polish"),
    ("ca", "catalan"),
    ("nl", "dutch"),
    ("ar", "arabic"),
    ("sv", "swedish"),
    ("it", "italian"),
    ("id", "indonesian"),
    ("hi", "hindi"),
    ("fi", "finnish"),
    ("vi", "vietnamese"),
    ("he", "hebrew"),
    ("uk", "ukrainian"),
    ("el", "greek"),
    ("ms", "malay"),
    ("cs", "czech"),
    ("ro", "romanian"),
    ("da", "danish"),
    ("hu", "hungarian"),
    ("ta", "tamil"),
    ("no", "norwegian"),
    ("th", "thai"),
    ("ur", "urdu"),
    ("hr", "croatian"),
    ("bg", "bulgarian"),
    ("lt", "lithuanian"),
    ("la", "latin"),
    ("mi", "maori"),
    ("ml", "malayalam"),
    ("cy", "welsh"),
    ("sk", "slovak"),
    ("te", "telugu"),
    ("fa", "persian"),
    ("lv", "latvian"),
    ("bn", "bengali"),
    ("sr", "serbian"),
    ("az", "azerbaijani"),
    ("sl", "slovenian"),
    ("kn", "kannada"),
    ("et", "estonian"),
    ("mk", "macedonian"),
    ("br", "breton"),
    ("eu", "basque"),
    ("is", "icelandic"),
    ("hy", "armenian"),
    ("ne", "nepali"),
    ("mn", "mongolian"),
    ("bs", "bosnian"),
    ("kk", "kazakh"),
    ("sq", "albanian"),
    ("sw", "swahili"),
    ("gl", "galician"),
    ("mr", "marathi"),
    ("pa", "punjabi"),
    ("si", "sinhala"),
    ("km", "khmer"),
    ("sn", "shona"),
    ("yo", "yoruba"),
    ("so", "somali"),
    ("af", "afrikaans"),
    ("oc", "occitan"),
    ("ka", "georgian"),
    ("be", "belarusian"),
    ("tg", "tajik"),
    ("sd", "sindhi"),
    ("gu", "gujarati"),
    ("am", "amharic"),
    ("yi", "yiddish"),
    ("lo", "lao"),
    ("uz", "uzbek"),
    ("fo", "faroese"),
    ("ht", "haitian creole"),
    ("ps", "pashto"),
    ("tk", "turkmen"),
    ("nn", "nynorsk"),
    ("mt", "maltese"),
    ("sa", "sanskrit"),
    ("lb", "luxembourgish"),
    ("my", "myanmar"),
    ("bo", "tibetan"),
    ("tl", "tagalog"),
    ("mg", "malagasy"),
    ("as", "assamese"),
    ("tt", "tatar"),
    ("haw", "hawaiian"),
    ("ln", "lingala"),
    ("ha", "hausa"),
    ("ba", "bashkir"),
    ("jw", "javanese"),
    ("su", "sundanese"),
    ("yue", "cantonese"),
];

/// Other names of some.
const ALIASES: [(&str, &str); 12] = [
    ("burmese", "my"),
    ("valencian", "ca"),
    ("flemish", "nl"),
    ("haitian", "ht"),
    ("letzeburgesch", "lb"),
    ("pushto", "ps"),
    ("panjabi", "pa"),
    ("moldavian", "ro"),
    ("moldovan", "ro"),
    ("sinhalese", "si"),
    ("castilian", "es"),
    ("mandarin", "zh"),
];

/// The code of a language, given by code or by name: `fr` for "fr", "FR", "fr-CA", "fr_FR", "French".
///
/// # Errors
/// For anything else, with the nearest name.
pub fn language_code(text: &str) -> Result<&'static str, String> {
    let wanted = text.trim().to_lowercase();
    let names = || LANGUAGES.into_iter().map(|(code, name)| (name, code)).chain(ALIASES);
    let by_code = |code: &str| LANGUAGES.iter().find(|(known, _)| *known == code).map(|(known, _)| *known);
    let by_name = || names().find(|(name, _)| *name == wanted).map(|(_, code)| code);
    // A region may follow: "pt-BR".
    let region = || by_code(wanted.split(['-', '_']).next().unwrap_or_default());
    if let Some(code) = by_code(&wanted).or_else(by_name).or_else(region) {
        return Ok(code);
    }
    let near = |(name, code): (&'static str, &'static str)| (strsim::jaro_winkler(name, &wanted), name, code);
    let nearest = names().map(near).max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(near, ..)| *near > 0.8);
    let hint = nearest.map_or_else(
        || "give a code (`fr`) or an English name (`french`)".into(),
        |(_, name, code)| format!("the nearest is `{name}` (`{code}`)"),
    );
    let shown: String = text.chars().take(40).collect();
    Err(format!("`{shown}` is no language of Whisper; {hint}"))
}

/// The English name of a code.
pub fn language_name(code: &str) -> Option<&'static str> {
    LANGUAGES.iter().find(|(known, _)| *known == code).map(|(_, name)| *name)
}

/// Whether the language is written without spaces between words.
pub fn without_spaces(code: &str) -> bool {
    matches!(code, "zh" | "ja" | "th" | "lo" | "my" | "yue")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_names_and_slips() {
        for text in ["fr", "FR", " french ", "French", "fr-CA", "fr_FR"] {
            assert_eq!(language_code(text), Ok("fr"), "{text}");
        }
        assert_eq!(language_code("Castilian"), Ok("es"));
        assert_eq!(language_code("haitian creole"), Ok("ht"));
        assert_eq!(language_code("zh-CN"), Ok("zh"));
        assert!(language_code("frnech").unwrap_err().contains("`french` (`fr`)"));
        assert!(language_code("").unwrap_err().contains("give a code"));
        assert_eq!(language_name("haw"), Some("hawaiian"));
        let mut codes = LANGUAGES.map(|(code, _)| code).to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), 100);
    }
}

//! Which modules a LoRA acts on: PEFT's rules, made strict. PEFT lets a misspelt name beside a right one pass
//! silently; here every name and pattern must match something.

use std::path::Path;

use retune_formats::lora_config::{LoraConfig, Matcher, Modules};

use crate::error::{Error, Result};

/// A configuration whose targets are spelt out for one model, and the modules that they choose.
pub struct Chosen {
    pub config: LoraConfig,
    pub matcher: Matcher,
    pub modules: Vec<String>,
}

/// The modules that `config` chooses among `modules`; `heads` are not part of "all-linear", and `usual` are the names
/// that PEFT takes for this architecture when the configuration names none.
///
/// # Errors
/// If a name matches nothing (the message names the nearest module), or nothing at all is chosen.
pub fn choose(config: &LoraConfig, modules: &[String], heads: &[String], usual: &[&str]) -> Result<Chosen> {
    let mut config = config.clone();
    match &config.target_modules {
        Some(Modules::AllLinear) => {
            let body: Vec<String> = modules.iter().filter(|m| !heads.contains(m)).cloned().collect();
            config.target_modules = Some(Modules::List(short_names(&body)));
        }
        None => config.target_modules = Some(Modules::List(usual.iter().map(|n| n.to_string()).collect())),
        Some(Modules::List(names)) => check_names("target_modules", names, modules)?,
        Some(Modules::Pattern(_)) => {}
    }
    if let Some(Modules::List(names)) = &config.exclude_modules {
        check_names("exclude_modules", names, modules)?;
    }
    let matcher = config.matcher(Path::new("LoRA settings"))?;
    let chosen: Vec<String> =
        modules.iter().filter(|m| matcher.is_target(m) == Some(true)).cloned().collect();
    if chosen.is_empty() {
        let known = short_names(modules).join(", ");
        return Err(Error::Method(format!("target_modules chooses no module; this model has {known}")));
    }
    Ok(Chosen { config, matcher, modules: chosen })
}

fn check_names(key: &str, names: &[String], modules: &[String]) -> Result<()> {
    let known = short_names(modules);
    for name in names {
        let matches = |path: &String| {
            path.strip_suffix(name.as_str()).is_some_and(|front| front.is_empty() || front.ends_with('.'))
        };
        if modules.iter().any(matches) {
            continue;
        }
        return Err(Error::Method(format!(
            "{key} names \"{name}\", which this model has not; did you mean \"{}\"? It has {}",
            nearest(name, known.iter().map(String::as_str)).unwrap_or_default(),
            known.join(", ")
        )));
    }
    Ok(())
}

/// The most similar of some names.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)))
}

/// The last parts of the paths, once each, in order of appearance.
pub fn short_names(modules: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for path in modules {
        let last = path.rsplit('.').next().unwrap_or(path);
        if !names.iter().any(|n| n == last) {
            names.push(last.to_string());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<String> {
        [
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.v_proj",
            "model.layers.0.mlp.up_proj",
            "lm_head",
        ]
        .map(String::from)
        .to_vec()
    }

    fn pick(targets: Modules) -> Result<Vec<String>> {
        let config = LoraConfig { target_modules: Some(targets), ..LoraConfig::default() };
        Ok(choose(&config, &modules(), &["lm_head".into()], &["q_proj"])?.modules)
    }

    #[test]
    fn all_linear_leaves_the_head_out() {
        assert_eq!(pick(Modules::AllLinear).expect("chosen"), modules()[..3]);
    }

    #[test]
    fn no_targets_means_the_usual_ones() {
        let chosen = choose(&LoraConfig::default(), &modules(), &[], &["q_proj"]).expect("chosen");
        assert_eq!(chosen.modules, modules()[..1]);
    }

    #[test]
    fn a_typo_is_named_even_beside_a_right_name() {
        let names = Modules::List(vec!["q_proj".into(), "up_porj".into()]);
        let message = pick(names).expect_err("typo").to_string();
        assert!(message.contains("up_porj") && message.contains("did you mean \"up_proj\""), "{message}");
    }

    #[test]
    fn a_pattern_must_match_the_whole_path() {
        assert_eq!(pick(Modules::Pattern(r".*\.[qv]_proj".into())).expect("chosen").len(), 2);
        assert!(pick(Modules::Pattern("q_proj".into())).is_err());
        assert!(pick(Modules::Pattern("(".into())).is_err());
    }

    #[test]
    fn layers_to_transform_also_limits_all_linear() {
        let config = LoraConfig {
            target_modules: Some(Modules::AllLinear),
            layers_to_transform: Some(vec![1]),
            ..LoraConfig::default()
        };
        let chosen = choose(&config, &modules(), &["lm_head".into()], &[]).expect("chosen");
        assert_eq!(chosen.modules, ["model.layers.1.self_attn.v_proj"]);
    }
}

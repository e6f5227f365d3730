//! Which modules an adapter acts on: PEFT's rules, made strict. PEFT lets a misspelt name beside a right one pass
//! silently; here every name and pattern must match something.

use std::path::Path;

use retune_formats::lora_config::{LoraConfig, Matcher, Modules};
use retune_formats::peft::{self, Param, PeftAdapter};

use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::Head;

/// What PEFT takes for an architecture when a configuration names nothing.
pub struct Usual {
    model_types: &'static [&'static str],
    /// `TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`.
    pub lora: &'static [&'static str],
    /// `TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING`.
    pub ia3: &'static [&'static str],
    /// `TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING`.
    pub feedforward: &'static [&'static str],
}

const USUAL: &[Usual] = &[
    Usual {
        model_types: &["llama", "mistral"],
        lora: &["q_proj", "v_proj"],
        ia3: &["k_proj", "v_proj", "down_proj"],
        feedforward: &["down_proj"],
    },
    Usual {
        model_types: &["qwen2", "qwen3"],
        lora: &["q_proj", "v_proj"],
        ia3: &["q_proj", "v_proj", "down_proj"],
        feedforward: &["down_proj"],
    },
    Usual {
        model_types: &["gpt2"],
        lora: &["c_attn"],
        ia3: &["c_attn", "mlp.c_proj"],
        feedforward: &["mlp.c_proj"],
    },
    Usual {
        model_types: &["bert", "roberta", "xlm-roberta"],
        lora: &["query", "value"],
        ia3: &["key", "value", "output.dense"],
        feedforward: &["output.dense"],
    },
    // PEFT has no entry for it; its examples take these.
    Usual {
        model_types: &["whisper"],
        lora: &["q_proj", "v_proj"],
        ia3: &["k_proj", "v_proj", "fc2"],
        feedforward: &["fc2"],
    },
    // PEFT has no entry for it; these are the counterparts of BERT's.
    Usual {
        model_types: &["distilbert"],
        lora: &["q_lin", "v_lin"],
        ia3: &["k_lin", "v_lin", "ffn.lin2"],
        feedforward: &["ffn.lin2"],
    },
];

/// The modules of one model that an adapter may act on, and how its files name them.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub model_type: String,
    /// Paths of the linears, those of the head last.
    pub linears: Vec<String>,
    /// Those of the head.
    pub heads: Vec<String>,
    /// Paths of the token tables.
    pub tables: Vec<String>,
    /// Paths of the linears that are convolutions.
    pub convolutions: Vec<String>,
    /// What the adapter's files leave out in front of a path: PEFT over a bare trunk (`AutoModel`) writes
    /// `encoder.layer.0...`, over a model with a head `bert.encoder.layer.0...`.
    left_out: Option<String>,
}

impl Known {
    /// The modules of a model; files of a trunk without a head leave its name out.
    pub fn of(model: &Model) -> Known {
        let mut known = Known::all(model);
        if matches!(model.net.head(), Head::None) {
            known.left_out = known.trunk();
        }
        known
    }

    /// [`Known::of`] without the token tables, for methods that are for linears alone.
    pub fn linears_of(model: &Model) -> Known {
        Known { tables: Vec::new(), ..Known::of(model) }
    }

    /// The modules of a model as an adapter's files name them.
    pub fn in_files(model: &Model, adapter: &PeftAdapter) -> Known {
        let mut known = Known::all(model);
        let own = || adapter.tensors().iter().filter(|t| !matches!(t.param, Param::Plain(_)));
        let has = |path: &str| known.linears.iter().chain(&known.tables).any(|p| p == path);
        if own().any(|t| !has(&t.module)) {
            known.left_out =
                known.trunk().filter(|trunk| own().all(|t| has(&format!("{trunk}{}", t.module))));
        }
        known
    }

    fn all(model: &Model) -> Known {
        let (linears, heads) = model.linear_paths();
        let convolutions = model.net.trunk_linears().into_iter().filter(|layer| layer.sliding.is_some());
        Known {
            model_type: model.net.model_type(),
            linears,
            heads,
            tables: model.net.embeddings().iter().map(|table| table.path.clone()).collect(),
            convolutions: convolutions.map(|layer| layer.path.clone()).collect(),
            left_out: None,
        }
    }

    /// Is it a network of convolutions? PEFT knows no usual modules for these: ours are all linears but the head's.
    pub fn is_convolutional(&self) -> bool {
        // What has token tables is a network of blocks, whatever stands in front of them.
        !self.convolutions.is_empty() && self.tables.is_empty()
    }

    /// Those of some names that choose dense layers of the trunk alone: IA3's feed-forward modules of a network of convolutions, whose
    /// other modules are the convolutions.
    pub fn dense_among(&self, names: &[String]) -> Vec<String> {
        let is_dense = |path: &&String| !self.convolutions.contains(path) && !self.heads.contains(path);
        let chooses_dense = |name: &&String| {
            let mut chosen = self.linears.iter().filter(|path| ends_in(self.name(path), name)).peekable();
            chosen.peek().is_some() && chosen.all(|path| is_dense(&path))
        };
        names.iter().filter(chooses_dense).cloned().collect()
    }

    /// `bert.`, if all linears of the trunk are inside it.
    fn trunk(&self) -> Option<String> {
        let body = || self.linears.iter().filter(|path| !self.heads.contains(path));
        let trunk = format!("{}.", body().next()?.split('.').next()?);
        body().all(|path| path.starts_with(&trunk)).then_some(trunk)
    }

    /// A module's path in the adapter's files.
    pub fn name<'a>(&self, path: &'a str) -> &'a str {
        self.left_out.as_deref().and_then(|front| path.strip_prefix(front)).unwrap_or(path)
    }

    /// The key of a module's parameter in the adapter's files.
    pub fn key(&self, path: &str, param: &Param) -> String {
        peft::key(self.name(path), param)
    }

    /// What PEFT takes for this architecture when a configuration names nothing.
    ///
    /// # Errors
    /// If nothing is known of the architecture.
    pub fn usual(&self) -> Result<&'static Usual> {
        USUAL.iter().find(|usual| usual.model_types.contains(&self.model_type.as_str())).ok_or_else(|| {
            Error::Method(format!(
                "no usual target_modules are known for \"{}\"; name some of {}",
                self.model_type,
                short_names(&self.linears).join(", ")
            ))
        })
    }

    /// All names that a configuration may mean, as the files have them.
    fn names(&self) -> Vec<String> {
        self.linears.iter().chain(&self.tables).map(|path| self.name(path).to_string()).collect()
    }

    /// Spells targets out for this model: `all-linear` becomes names that choose every linear but those of the head.
    ///
    /// # Errors
    /// If a name matches nothing; the message names the nearest module.
    pub fn spell_out(&self, key: &str, modules: &mut Option<Modules>, usual: &[&str]) -> Result<()> {
        match modules {
            Some(Modules::AllLinear) => *modules = Some(Modules::List(self.body_names())),
            None => *modules = Some(Modules::List(usual.iter().map(|n| n.to_string()).collect())),
            Some(Modules::List(names)) => self.check_names(key, names)?,
            Some(Modules::Pattern(_)) => {}
        }
        Ok(())
    }

    /// The shortest ends of the trunk's paths that are no ends of the head's, once each. Whole paths where there are convolutions: their names are
    /// numbers, with which paths of other layers end too, and PEFT refuses to adapt a pooling.
    fn body_names(&self) -> Vec<String> {
        if self.is_convolutional() {
            let body = self.linears.iter().filter(|path| !self.heads.contains(path));
            return body.map(|path| self.name(path).to_string()).collect();
        }
        let heads: Vec<&str> = self.heads.iter().map(|path| self.name(path)).collect();
        let mut names: Vec<String> = Vec::new();
        for path in self.linears.iter().filter(|path| !self.heads.contains(path)) {
            let path = self.name(path);
            let starts = path.rmatch_indices('.').map(|(dot, _)| dot + 1).chain([0]);
            let ends = starts.map(|start| &path[start..]);
            let end = ends.into_iter().find(|end| !heads.iter().any(|head| ends_in(head, end)));
            let end = end.unwrap_or(path);
            if !names.iter().any(|name| name == end) {
                names.push(end.to_string());
            }
        }
        names
    }

    /// # Errors
    /// If a name is no module's; the message names the nearest.
    pub fn check_names(&self, key: &str, names: &[String]) -> Result<()> {
        let modules = self.names();
        let Some(odd) = names.iter().find(|name| !modules.iter().any(|path| ends_in(path, name))) else {
            return Ok(());
        };
        let known = short_names(&modules);
        Err(Error::Method(format!(
            "{key} names \"{odd}\", which this model has not; did you mean \"{}\"? It has {}",
            nearest(odd, known.iter().map(String::as_str)).unwrap_or_default(),
            known.join(", ")
        )))
    }

    /// The paths that a test of names in files chooses.
    ///
    /// # Errors
    /// If it chooses none.
    pub fn chosen(&self, is_target: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let all = self.linears.iter().chain(&self.tables);
        let chosen: Vec<String> = all.filter(|path| is_target(self.name(path))).cloned().collect();
        if chosen.is_empty() {
            let known = short_names(&self.names()).join(", ");
            return Err(Error::Method(format!("target_modules chooses no module; this model has {known}")));
        }
        Ok(chosen)
    }
}

/// A configuration whose targets are spelt out for one model, and the modules that they choose.
pub struct Chosen {
    pub config: LoraConfig,
    pub matcher: Matcher,
    /// Their paths in the model.
    pub modules: Vec<String>,
    pub known: Known,
}

impl Chosen {
    /// The rank of a module.
    pub fn rank(&self, path: &str) -> usize {
        self.matcher.rank(self.known.name(path))
    }

    /// What a module's branch is multiplied with.
    pub fn scale(&self, path: &str) -> f32 {
        self.matcher.scale(self.known.name(path)) as f32
    }
}

/// The modules that `config` chooses; without targets, those that PEFT takes for the architecture.
///
/// # Errors
/// If a name matches nothing (the message names the nearest module), or nothing at all is chosen.
pub fn choose(config: &LoraConfig, known: Known) -> Result<Chosen> {
    let mut config = config.clone();
    if known.is_convolutional() {
        config.target_modules.get_or_insert(Modules::AllLinear);
    }
    let usual = if config.target_modules.is_none() { known.usual()?.lora } else { &[] };
    known.spell_out("target_modules", &mut config.target_modules, usual)?;
    if let Some(Modules::List(names)) = &config.exclude_modules {
        known.check_names("exclude_modules", names)?;
    }
    let matcher = config.matcher(Path::new("LoRA settings"))?;
    let modules = known.chosen(|name| matcher.is_target(name) == Some(true))?;
    Ok(Chosen { config, matcher, modules, known })
}

/// Is a path this name, or does it end in `.name`?
fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
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

    fn known() -> Known {
        let texts = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        Known {
            model_type: "llama".into(),
            linears: texts(&[
                "model.layers.0.self_attn.q_proj",
                "model.layers.1.self_attn.v_proj",
                "model.layers.0.mlp.up_proj",
                "lm_head",
            ]),
            heads: texts(&["lm_head"]),
            tables: texts(&["model.embed_tokens"]),
            convolutions: Vec::new(),
            left_out: None,
        }
    }

    fn pick(targets: Modules) -> Result<Vec<String>> {
        let config = LoraConfig { target_modules: Some(targets), ..LoraConfig::default() };
        Ok(choose(&config, known())?.modules)
    }

    #[test]
    fn all_linear_leaves_the_head_out() {
        assert_eq!(pick(Modules::AllLinear).expect("chosen"), known().linears[..3]);
        let texts = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        let bert = Known {
            linears: texts(&["bert.layer.0.key", "bert.layer.0.output.dense", "bert.pooler.dense"]),
            heads: texts(&["bert.pooler.dense"]),
            ..known()
        };
        let config = LoraConfig { target_modules: Some(Modules::AllLinear), ..LoraConfig::default() };
        let chosen = choose(&config, bert.clone()).expect("chosen");
        assert_eq!(chosen.modules, bert.linears[..2]);
        assert_eq!(
            chosen.config.target_modules,
            Some(Modules::List(vec!["key".into(), "output.dense".into()]))
        );
    }

    #[test]
    fn no_targets_means_the_usual_ones() {
        let chosen = choose(&LoraConfig::default(), known()).expect("chosen");
        assert_eq!(chosen.modules, known().linears[..2]);
        let other = Known { model_type: "gpt9".into(), ..known() };
        let message = choose(&LoraConfig::default(), other).err().expect("unknown").to_string();
        assert!(message.contains("gpt9"), "{message}");
    }

    #[test]
    fn all_modules_of_a_network_of_convolutions_by_their_whole_paths() {
        let texts = |texts: &[&str]| -> Vec<String> { texts.iter().map(|t| t.to_string()).collect() };
        let vgg = Known {
            model_type: "vgg".into(),
            linears: texts(&["features.0", "features.3", "classifier.0", "classifier.3"]),
            heads: texts(&["classifier.3"]),
            convolutions: texts(&["features.0", "features.3"]),
            ..Known::default()
        };
        let chosen = choose(&LoraConfig::default(), vgg.clone()).expect("chosen");
        assert_eq!(chosen.modules, vgg.linears[..3]);
        assert_eq!(chosen.config.target_modules, Some(Modules::List(vgg.linears[..3].to_vec())));
        assert_eq!(vgg.dense_among(&vgg.linears), ["classifier.0"]);
        assert!(vgg.dense_among(&texts(&["0", "3"])).is_empty(), "both choose convolutions too");
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
        let chosen = choose(&config, known()).expect("chosen");
        assert_eq!(chosen.modules, ["model.layers.1.self_attn.v_proj"]);
    }

    #[test]
    fn files_of_a_bare_trunk_leave_its_name_out() {
        let bare = Known { left_out: Some("model.".into()), ..known() };
        assert_eq!(bare.name("model.layers.0.self_attn.q_proj"), "layers.0.self_attn.q_proj");
        assert_eq!(known().trunk().as_deref(), Some("model."));
        let config = LoraConfig {
            target_modules: Some(Modules::Pattern(r"layers\.\d+\.self_attn\.q_proj".into())),
            ..LoraConfig::default()
        };
        assert_eq!(choose(&config, bare).expect("chosen").modules, known().linears[..1]);
    }
}

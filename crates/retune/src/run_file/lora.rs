//! Settings of `method = "lora"` beside its rank, and of `method = "ia3"`.

use retune_formats::lora_config;
use serde::{Deserialize, Serialize};

use super::TargetModules;

/// Which biases are trained besides the branches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraBias {
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the targets.
    LoraOnly,
}

impl From<LoraBias> for lora_config::Bias {
    fn from(bias: LoraBias) -> Self {
        match bias {
            LoraBias::None => lora_config::Bias::None,
            LoraBias::All => lora_config::Bias::All,
            LoraBias::LoraOnly => lora_config::Bias::LoraOnly,
        }
    }
}

/// Settings of `method = "ia3"`; the names are PEFT's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ia3 {
    /// `None`: PEFT's choice for the architecture.
    pub target_modules: Option<TargetModules>,
    /// The targets whose input is scaled. `None`: PEFT's choice for the architecture, among the targets.
    pub feedforward_modules: Option<Vec<String>>,
    pub exclude_modules: Option<Vec<String>>,
    pub modules_to_save: Option<Vec<String>>,
}

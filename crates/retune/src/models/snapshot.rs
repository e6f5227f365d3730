//! A model as it was before a method was put on it, to go back to: many runs from one loading.

use retune_tensor::Params;

use super::{Model, OnModel};

/// The parameters and adapters of a model at some time. Values are shared with the model until one of them is written to.
#[derive(Clone)]
pub struct Snapshot {
    params: Params,
    adapters: Vec<OnModel>,
}

impl Model {
    /// Remembers the model as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { params: self.params.clone(), adapters: self.adapters.clone() }
    }

    /// Goes back to a snapshot of this very model: its parameters, and nothing in the slots that were free then. What
    /// was in a slot then must still be there.
    pub fn reset(&mut self, snapshot: &Snapshot) {
        self.params = snapshot.params.clone();
        self.adapters = snapshot.adapters.clone();
        let taken: Vec<usize> = self.adapters.iter().map(|on| on.slot).collect();
        self.net.visit_sites(&mut |site| site.keep_only(&taken));
    }
}

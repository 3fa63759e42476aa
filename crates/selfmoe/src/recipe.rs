//! How a domain's data is made: templates and sampling settings, checked once.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    domain::Domain,
    error::{Error, Result},
    template::{BrainstormTemplate, FollowUpTemplate, RespondTemplate},
};

/// Numbers that decide what is asked of the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The run's seed: every random choice follows from it, the domain's name and the record's number.
    pub seed: u64,
    /// Divisor of the logits while brainstorming.
    pub temperature: f32,
    /// Nucleus probability while brainstorming.
    pub top_p: f32,
    /// Seeds shown while brainstorming.
    pub shown_seeds: usize,
    /// Seeds shown with their outputs while responding.
    pub demonstrations: usize,
    /// Special tokens that seeds and tasks spell are recognised in prompts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub parse_special: bool,
}

impl Default for Settings {
    /// The paper's values.
    fn default() -> Self {
        Self {
            seed: 0,
            temperature: 1.0,
            top_p: 0.98,
            shown_seeds: 3,
            demonstrations: 5,
            parse_special: false,
        }
    }
}

impl Settings {
    /// Refuses values out of range.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature > 0.0 && self.temperature <= 10.0) {
            return Err(Error::setting(
                "temperature",
                format!("{} is not above 0 and at most 10", self.temperature),
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::setting("top_p", format!("{} is not above 0 and at most 1", self.top_p)));
        }
        for (key, value) in [("shown_seeds", self.shown_seeds), ("demonstrations", self.demonstrations)] {
            if !(1..=32).contains(&value) {
                return Err(Error::setting(key, format!("{value} is not 1 to 32")));
            }
        }
        Ok(())
    }
}

/// Templates and settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// How new tasks are asked for.
    pub brainstorm: BrainstormTemplate,
    /// How responses are asked for.
    pub respond: RespondTemplate,
    /// How tests of a function are asked for.
    pub tests: FollowUpTemplate,
    /// How the task that a response answers is asked for.
    pub round_trip: FollowUpTemplate,
    /// Sampling.
    pub settings: Settings,
}

impl Recipe {
    /// The built-in templates with these settings.
    ///
    /// # Errors
    /// A setting is out of range.
    pub fn built_in(settings: Settings) -> Result<Self> {
        settings.validate()?;
        Ok(Self {
            brainstorm: BrainstormTemplate::built_in()?,
            respond: RespondTemplate::built_in()?,
            tests: FollowUpTemplate::tests()?,
            round_trip: FollowUpTemplate::round_trip()?,
            settings,
        })
    }

    /// SHA-256 (lower-case hex) over everything that prompts of this domain are made of.
    ///
    /// # Errors
    /// None in practice: the parts are plain data.
    pub fn prompt_hash(&self, domain: &Domain) -> Result<String> {
        let parts = (&self.brainstorm, &self.respond, &self.settings, &domain.manifest, &domain.seeds);
        let json = serde_json::to_vec(&parts).map_err(|e| Error::setting("templates", e.to_string()))?;
        Ok(Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

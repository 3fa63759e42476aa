//! How a domain's data is made: templates and sampling settings, checked once.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    domain::Domain,
    error::{Error, Result},
    follow_up::FollowUp,
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

    /// Everything that decides what is written when new tasks of this domain are asked for, beside the model.
    pub fn brainstorm_inputs(&self, domain: &Domain) -> Value {
        let limits = &domain.manifest.limits;
        json!({
            "template": self.brainstorm,
            "seed": self.settings.seed,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "shown_seeds": self.settings.shown_seeds,
            "name": domain.name(),
            "requirements": domain.manifest.requirements,
            "max_instruction_tokens": limits.max_instruction_tokens,
            "instructions_per_record": limits.instructions_per_record,
            "seeds": domain.seeds,
        })
    }

    /// Everything that decides what is written when responses of this domain are asked for, beside the model and the task.
    pub fn respond_inputs(&self, domain: &Domain) -> Value {
        json!({
            "template": self.respond,
            "seed": self.settings.seed,
            "demonstrations": self.settings.demonstrations,
            "name": domain.name(),
            "role": domain.manifest.role,
            "max_response_tokens": domain.manifest.limits.max_response_tokens,
            "seeds": domain.seeds,
        })
    }

    /// Everything that decides what is written when tests or the tasks of responses are asked for, beside the model and what they are
    /// about.
    pub fn follow_up_inputs(&self, domain: &Domain, what: FollowUp) -> Value {
        let limits = &domain.manifest.limits;
        let (template, max_tokens) = match what {
            FollowUp::Tests => (&self.tests, limits.max_response_tokens),
            FollowUp::RoundTrip => (&self.round_trip, limits.max_instruction_tokens),
        };
        json!({
            "template": template,
            "seed": self.settings.seed,
            "demonstrations": self.settings.demonstrations,
            "name": domain.name(),
            "max_tokens": max_tokens,
            "seeds": domain.seeds,
        })
    }

    /// Everything that decides which of the written tasks and responses of this domain are kept, beside their texts and the model's
    /// tokens. What only describes the domain (its title, its description) is in none of these.
    pub fn filter_inputs(&self, domain: &Domain) -> Value {
        json!({
            "template": self.brainstorm,
            "name": domain.name(),
            "answer": domain.manifest.answer,
            "limits": domain.manifest.limits,
            "filters": domain.manifest.filters,
            "seeds": domain.seeds,
        })
    }

    /// SHA-256 (lower-case hex) over everything that prompts of this domain are made of.
    pub fn prompt_hash(&self, domain: &Domain) -> String {
        let parts = json!([self.brainstorm_inputs(domain), self.respond_inputs(domain)]);
        mixse_files::hash_bytes(parts.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::built_in;

    /// Which of what generates (tasks, responses, tests, tasks of responses) and of what filters a change of the domain touches.
    fn touched(change: impl FnOnce(&mut Domain)) -> [bool; 5] {
        let recipe = Recipe::built_in(Settings::default()).unwrap();
        let old = built_in("coding").unwrap().unwrap();
        let mut new = old.clone();
        change(&mut new);
        let differ = |of: &dyn Fn(&Domain) -> Value| of(&old) != of(&new);
        [
            differ(&|d| recipe.brainstorm_inputs(d)),
            differ(&|d| recipe.respond_inputs(d)),
            differ(&|d| recipe.follow_up_inputs(d, FollowUp::Tests)),
            differ(&|d| recipe.follow_up_inputs(d, FollowUp::RoundTrip)),
            differ(&|d| recipe.filter_inputs(d)),
        ]
    }

    #[test]
    fn a_change_touches_what_depends_on_it_and_nothing_else() {
        let nothing = [false; 5];
        assert_eq!(touched(|_| {}), nothing);
        assert_eq!(touched(|d| d.manifest.title.push('!')), nothing);
        assert_eq!(touched(|d| d.manifest.description.push('!')), nothing);
        assert_eq!(touched(|d| d.check.clear()), nothing);
        let filtered = [false, false, false, false, true];
        assert_eq!(touched(|d| d.manifest.limits.max_similarity = 0.5), filtered);
        assert_eq!(touched(|d| d.manifest.limits.max_response_words = 9), filtered);
        assert_eq!(touched(|d| d.manifest.filters.stated_answer = Some(true)), filtered);
        assert_eq!(touched(|d| d.manifest.requirements.push('!')), [true, false, false, false, false]);
        assert_eq!(touched(|d| d.manifest.role.push('!')), [false, true, false, false, false]);
        assert_eq!(
            touched(|d| d.manifest.limits.instructions_per_record = 7),
            [true, false, false, false, true]
        );
        assert_eq!(touched(|d| d.manifest.limits.max_response_tokens = 7), [false, true, true, false, true]);
        assert_eq!(
            touched(|d| d.manifest.limits.max_instruction_tokens = 9),
            [true, false, false, true, true]
        );
        assert_eq!(touched(|d| d.seeds[0].output.push('!')), [true; 5]);
    }
}

//! From raw records to rows: pure steps over files, in the order of the records, so that the result depends neither
//! on how the records were batched or sharded nor on when they were made.

use std::collections::{BTreeMap, HashMap};

use mixse_model::tokenizer::ContentTokens;
use serde::{Deserialize, Serialize};

use crate::{
    brainstorm::Brainstormed,
    domain::Domain,
    error::{Error, Result},
    filter::{Reason, Rejection, ResponseFilter, TaskFilter},
    parse::{self, Parsed},
    recipe::Recipe,
    record::{Checks, Origin, SamplingRecord, SyntheticRow},
    respond::Responded,
};

/// A new task that was kept and waits for its response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// `DOMAIN-RECORD-ITEM`.
    pub id: String,
    /// The brainstorm record.
    pub record: u64,
    /// What is asked.
    pub instruction: String,
    /// What it is asked about; often empty.
    pub input: String,
    /// The ids of the seeds that were shown.
    pub seeds: Vec<String>,
    /// Highest ROUGE-L to a seed.
    pub seed_similarity: f64,
    /// Highest ROUGE-L to a task kept before.
    pub row_similarity: f64,
}

/// Where a rejection happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The task.
    Brainstorm,
    /// The response.
    Respond,
}

/// Something that was not kept, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// As the row would have been called.
    pub id: String,
    /// The domain's name.
    pub domain: String,
    /// Where.
    pub stage: Stage,
    /// Why.
    pub reason: Reason,
    /// What exactly was found; may be empty.
    pub detail: String,
    /// What is asked; empty if nothing could be parsed.
    pub instruction: String,
    /// What it is asked about.
    pub input: String,
    /// The response as written, or the record's text if nothing could be parsed.
    pub text: String,
}

/// How many came through each step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Funnel {
    /// Brainstorm records looked at.
    pub asked: u64,
    /// Tasks that could be read from them.
    pub parsed: u64,
    /// Tasks that were kept.
    pub tasks: u64,
    /// Rows: tasks whose response was kept.
    pub accepted: u64,
    /// Tasks and responses that were not kept, by reason.
    pub rejected: BTreeMap<Reason, u64>,
}

impl Funnel {
    pub(crate) fn reject(&mut self, reason: Reason) {
        *self.rejected.entry(reason).or_default() += 1;
    }
}

/// The tasks of a domain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Kept, in order of record and place.
    pub tasks: Vec<Task>,
    /// Not kept, in the same order.
    pub rejected: Vec<RejectedRow>,
    /// Counts up to here.
    pub funnel: Funnel,
}

/// The rows of a domain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assembly {
    /// Kept, in order.
    pub rows: Vec<SyntheticRow>,
    /// Not kept: those of the selection, then responses, each in order.
    pub rejected: Vec<RejectedRow>,
    /// Counts of the whole way.
    pub funnel: Funnel,
}

/// Reads tasks out of brainstorm records and keeps the first `wanted` good ones. Records are taken in the order of
/// their numbers; those beyond the last one needed are not looked at. `tokens` counts a text's tokens.
///
/// # Errors
/// A record occurs twice, or `tokens` fails.
pub fn select(
    domain: &Domain,
    recipe: &Recipe,
    records: &[Brainstormed],
    wanted: usize,
    tokens: &dyn Fn(&str) -> Result<usize>,
) -> Result<Selection> {
    let mut order: Vec<&Brainstormed> = records.iter().collect();
    order.sort_by_key(|r| r.record);
    if let Some(pair) = order.windows(2).find(|pair| pair[0].record == pair[1].record) {
        return Err(Error::setting("brainstorm records", format!("record {} occurs twice", pair[0].record)));
    }
    let mut filter = TaskFilter::new(domain);
    let mut selection = Selection::default();
    for record in order {
        if selection.tasks.len() >= wanted {
            break;
        }
        selection.funnel.asked += 1;
        let limit = domain.manifest.limits.instructions_per_record;
        let items = parse::tasks(&recipe.brainstorm, &record.text, record.end, limit);
        for (place, item) in items.into_iter().enumerate() {
            if selection.tasks.len() < wanted {
                let id = format!("{}-{:06}-{place}", domain.name(), record.record);
                selection.add(domain, &mut filter, record, id, item, tokens)?;
            }
        }
    }
    selection.funnel.tasks = selection.tasks.len() as u64;
    Ok(selection)
}

impl Selection {
    fn add(
        &mut self,
        domain: &Domain,
        filter: &mut TaskFilter,
        record: &Brainstormed,
        id: String,
        item: Parsed,
        tokens: &dyn Fn(&str) -> Result<usize>,
    ) -> Result<()> {
        let (instruction, input) = match item {
            Parsed::Task { instruction, input } => (instruction, input),
            Parsed::Unfinished | Parsed::Unparsable => {
                let reason = if item == Parsed::Unfinished { Reason::Unfinished } else { Reason::Unparsable };
                let text = record.text.clone();
                self.reject(domain, id, Rejection::new(reason, ""), (String::new(), String::new(), text));
                return Ok(());
            }
        };
        self.funnel.parsed += 1;
        let count = tokens(&format!("{instruction}\n{input}"))?;
        match filter.accept(&id, &instruction, &input, count, &record.seeds) {
            Ok(similarity) => self.tasks.push(Task {
                id,
                record: record.record,
                instruction,
                input,
                seeds: record.seeds.clone(),
                seed_similarity: similarity.seed,
                row_similarity: similarity.row,
            }),
            Err(rejection) => self.reject(domain, id, rejection, (instruction, input, String::new())),
        }
        Ok(())
    }

    fn reject(
        &mut self,
        domain: &Domain,
        id: String,
        rejection: Rejection,
        (instruction, input, text): (String, String, String),
    ) {
        let Rejection { reason, detail } = rejection;
        self.funnel.reject(reason);
        let (domain, stage) = (domain.name().to_owned(), Stage::Brainstorm);
        self.rejected.push(RejectedRow { id, domain, stage, reason, detail, instruction, input, text });
    }
}

/// Joins tasks with their responses and keeps the good rows. `model` is the base model's hash, for the rows' origin.
///
/// # Errors
/// A task has no response: its shard is missing.
pub fn assemble(
    domain: &Domain,
    recipe: &Recipe,
    model: &str,
    selection: Selection,
    responses: &[Responded],
) -> Result<Assembly> {
    let responses: HashMap<&str, &Responded> = responses.iter().map(|r| (r.id.as_str(), r)).collect();
    let filter = ResponseFilter::new(domain);
    let prompt = recipe.prompt_hash(domain);
    let Selection { tasks, rejected, funnel } = selection;
    let mut assembly = Assembly { rows: Vec::new(), rejected, funnel };
    for task in tasks {
        let response = responses.get(task.id.as_str()).ok_or_else(|| {
            Error::setting("responses", format!("task {} has none; generate its shard first", task.id))
        })?;
        match filter.accept(
            &task.instruction,
            &task.input,
            &response.demonstrations,
            &response.text,
            response.end,
        ) {
            Ok(accepted) => assembly.rows.push(SyntheticRow {
                domain: domain.name().to_owned(),
                origin: Origin {
                    seeds: task.seeds,
                    demonstrations: response.demonstrations.clone(),
                    sampling: SamplingRecord {
                        seed: recipe.settings.seed,
                        record: task.record,
                        temperature: recipe.settings.temperature,
                        top_p: recipe.settings.top_p,
                    },
                    prompt: prompt.clone(),
                    model: model.to_owned(),
                    special_tokens: Some(ContentTokens::parsed_if(recipe.settings.parse_special)),
                },
                checks: Checks::new(task.seed_similarity, task.row_similarity, accepted.answer),
                id: task.id,
                instruction: task.instruction,
                input: task.input,
                output: accepted.output,
            }),
            Err(Rejection { reason, detail }) => {
                assembly.funnel.reject(reason);
                assembly.rejected.push(RejectedRow {
                    id: task.id,
                    domain: domain.name().to_owned(),
                    stage: Stage::Respond,
                    reason,
                    detail,
                    instruction: task.instruction,
                    input: task.input,
                    text: response.text.clone(),
                });
            }
        }
    }
    assembly.funnel.accepted = assembly.rows.len() as u64;
    Ok(assembly)
}

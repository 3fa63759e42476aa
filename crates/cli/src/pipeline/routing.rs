//! Where the mixture's tokens went: the heatmap and the coloured samples of the report.

use std::{path::Path, sync::Arc};

use mixse_eval::{
    checks::Row,
    report::{Routing, RoutingRow, Sample, Token},
};
use mixse_model::{
    engine::Ragged,
    mixture::Mixture,
    tokenizer::{Bos, TextStream},
};
use mixse_selfmoe::{
    domain::Domain,
    plan::{Input, Task, Work},
    record::Example,
};
use serde::{Deserialize, Serialize};

use super::{
    Pipeline, TaskResult, Watch, evaluate::Evaluated, files, read_json, shards, value_input, write_json,
};
use crate::config::Method;

/// Responses per domain that are routed for the heatmap: enough for shares to a percent.
const ROUTED_ITEMS: usize = 25;

/// `eval/routing.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct RoutingFile {
    pub(super) routing: Routing,
    pub(super) samples: Vec<Sample>,
}

impl Pipeline {
    pub(super) fn routing_task(&self) -> Task<'_> {
        let evaluated =
            shards(self.config.evaluation.shards).map(|s| Input::Task(format!("eval/mixture/{}", s.index)));
        let settings = [
            Input::Task("router".into()),
            self.model_input(),
            value_input("samples", &self.config.evaluation.samples),
        ];
        let inputs = evaluated.chain(self.all_experts()).chain(settings);
        Task::new("routing", inputs.collect(), vec![files::routing()], |work| self.route(work))
    }

    fn route(&self, work: &Work<'_>) -> TaskResult {
        let mixture = self.mixture(work.run(), &files::router(work.run()))?;
        let own = Evaluated::Method(Method::Mixture(Vec::new()));
        let mut watch = Watch::new(work, "routing", "domains", self.domains.len());
        let mut file = RoutingFile { routing: Routing { rows: Vec::new() }, samples: Vec::new() };
        for (index, domain) in self.domains.iter().enumerate() {
            let rows = self.outline().check_rows(work.run(), &own, domain)?;
            let mut sums = vec![0.0; mixture.experts.len()];
            let mut tokens = 0;
            for (place, row) in rows.iter().take(ROUTED_ITEMS).enumerate() {
                let Some(item) = domain.check.iter().find(|item| item.id == row.id) else { continue };
                let routed = self.route_response(&mixture, item, row)?;
                tokens += routed.len() as u64;
                for token in &routed {
                    sums.iter_mut().zip(&token.probabilities).for_each(|(sum, p)| *sum += f64::from(*p));
                }
                if place < self.config.evaluation.samples {
                    file.samples.push(sample(domain, item, row, routed));
                }
            }
            let all: f64 = sums.iter().sum();
            let shares = sums.iter().map(|sum| if all > 0.0 { sum / all } else { 0.0 }).collect();
            file.routing.rows.push(RoutingRow { domain: domain.name().to_owned(), tokens, shares });
            let _ = watch.at(index + 1, tokens);
        }
        watch.finish()?;
        Ok(write_json(&work.output(files::routing())?, &file)?)
    }

    /// The tokens of a response with each expert's part in their decisions, averaged over the blocks.
    fn route_response(&self, mixture: &Mixture, item: &Example, row: &Row) -> anyhow::Result<Vec<Token>> {
        let tokenizer = self.models.tokenizer()?;
        let prompt = self.template.encode(self.config.style, tokenizer, &item.instruction, &item.input)?;
        let response = tokenizer.encode(&row.response, Bos::Never)?;
        let ids: Vec<u32> = prompt.iter().chain(&response).copied().collect();
        let ragged = Arc::new(Ragged::with_prompts([(prompt.len(), ids.len())]));
        let gates = self.models.engine()?.route(&ids, &ragged, mixture)?;
        let experts = mixture.experts.len();
        let blocks = gates.len() as f32;
        let mut text = TextStream::default();
        let tokens = response.iter().enumerate().map(|(i, &id)| {
            let at = (prompt.len() + i) * experts;
            let mut parts = vec![0.0f32; experts];
            for block in &gates {
                let gates = &block[at..at + experts];
                let sum: f32 = gates.iter().sum();
                if sum > 0.0 {
                    parts.iter_mut().zip(gates).for_each(|(part, gate)| *part += gate / sum / blocks);
                }
            }
            Token { text: text.push(tokenizer, id).to_owned(), probabilities: parts }
        });
        Ok(tokens.collect())
    }
}

/// The routing of a finished run.
pub(super) fn read_routing(run: &Path) -> anyhow::Result<RoutingFile> {
    read_json(&run.join(files::routing()))
}

fn sample(domain: &Domain, item: &Example, row: &Row, tokens: Vec<Token>) -> Sample {
    let prompt = if item.input.is_empty() {
        item.instruction.clone()
    } else {
        format!("{}\n\n{}", item.instruction, item.input)
    };
    Sample {
        id: item.id.clone(),
        domain: domain.name().to_owned(),
        prompt,
        correct: Some(row.correct),
        tokens,
    }
}

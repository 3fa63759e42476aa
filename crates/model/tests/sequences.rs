//! Routers that decide once a sequence: from the prompt, for the whole answer, however the answer is computed.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

mod tiny;

use std::{path::Path, sync::Arc};

use mixse_model::{
    engine::{Ask, Engine, Ragged, SequenceId, Session},
    expert_set::ExpertSet,
    mixture::{Mixture, Routing},
    router::{GateConfig, Granularity, Router, RouterConfig, RouterInput},
};

fn mixture(model: &Path, engine: &Engine, input: RouterInput, shared: bool) -> Mixture {
    let experts = tiny::experts(model, engine);
    let set = ExpertSet::new(&experts, &engine.config).unwrap();
    let gate = GateConfig { temperature: 0.05, ..GateConfig::default() };
    let config = RouterConfig { input, shared, granularity: Granularity::Sequence, gate };
    let router = Router::init(&config, &set.names, &engine.config, 4).unwrap();
    Mixture { experts: set, routing: Routing::Learned(router) }
}

const KINDS: [(RouterInput, bool); 4] = [
    (RouterInput::Block, true),
    (RouterInput::Block, false),
    (RouterInput::BaseLast, true),
    (RouterInput::Embedding, true),
];

/// Logits of every position of one sequence, computed at once.
fn whole(engine: &Engine, mixture: &Mixture, ids: &[u32], prompt: usize) -> Vec<f32> {
    let ragged = Arc::new(Ragged::with_prompts([(prompt, ids.len())]));
    let rows: Vec<usize> = (0..ids.len()).collect();
    engine.whole(ids, &ragged, Some(mixture), &Ask { logits: &rows, ..Ask::default() }).unwrap().logits
}

/// Logits of every new row of a step.
fn step(session: &mut dyn Session, work: &[(SequenceId, &[u32])]) -> Vec<f32> {
    let rows: Vec<usize> = (0..work.iter().map(|(_, ids)| ids.len()).sum()).collect();
    session.step(work, &Ask { logits: &rows, ..Ask::default() }).unwrap().logits
}

#[test]
fn a_decision_is_taken_at_the_prompt_and_kept() {
    tiny::each_case(|what, _, ids, model, processor| {
        let engine = tiny::load(model, processor);
        let vocabulary = engine.config.vocab_size;
        for (input, shared) in KINDS {
            let what = format!("{what}, {input:?}, shared {shared}");
            let mixture = mixture(model, &engine, input, shared);
            let (prompt, other) = (7, &ids[3..9]);
            let want = whole(&engine, &mixture, ids, prompt);

            let ragged = Arc::new(Ragged::with_prompts([(prompt, ids.len())]));
            for block in engine.route(ids, &ragged, &mixture).unwrap() {
                let rows: Vec<&[f32]> = block.chunks_exact(3).collect();
                assert!(
                    rows.iter().all(|row| *row == rows[0]),
                    "{what}: all tokens of a sequence go one way"
                );
            }
            let elsewhere = whole(&engine, &mixture, ids, 2);
            assert!(
                want.iter().zip(&elsewhere).any(|(a, b)| (a - b).abs() > 1e-4),
                "{what}: the prompt's length matters"
            );

            // The prompt, then token by token, beside another sequence that starts later.
            let mut session = engine.session(Some(&mixture)).unwrap();
            let session = &mut *session;
            let (a, b) = (session.start(), session.start());
            let mut got = Vec::new();
            got.extend(step(session, &[(a, &ids[..prompt])]));
            let mut of_other = Vec::new();
            let mut fork = None;
            for at in prompt..ids.len() {
                let token = &ids[at..=at];
                let logits = match at - prompt {
                    1 => step(session, &[(b, other), (a, token)]),
                    _ => step(session, &[(a, token)]),
                };
                let (others, own) = logits.split_at(logits.len() - vocabulary);
                got.extend(own);
                if !others.is_empty() {
                    of_other = others.to_vec();
                    fork = Some((session.fork(a).unwrap(), at + 1));
                }
            }
            tiny::assert_close(&format!("{what}: token by token"), &got, &want);
            let alone = whole(&engine, &mixture, other, other.len());
            tiny::assert_close(&format!("{what}: beside another"), &of_other, &alone);
            let (fork, at) = fork.unwrap();
            let logits = step(session, &[(fork, &ids[at..])]);
            tiny::assert_close(
                &format!("{what}: a fork keeps the decision"),
                &logits,
                &want[at * vocabulary..],
            );

            // The prompt and what follows it in one step, and a prompt in parts.
            let c = session.start();
            session.set_prompt(c, prompt);
            let logits = step(session, &[(c, ids)]);
            tiny::assert_close(&format!("{what}: with its prompt told"), &logits, &want);
            let d = session.start();
            session.set_prompt(d, prompt);
            let message = session.step(&[(d, &ids[..3])], &Ask::default()).unwrap_err().to_string();
            assert!(message.contains("all of it"), "{message}");
        }
    });
}

#[test]
fn backends_agree_on_sequences() {
    tiny::each_backend(|what, ids, model, engine, reference| {
        for (input, shared) in KINDS {
            let mixture = mixture(model, engine, input, shared);
            let (got, want) = (whole(engine, &mixture, ids, 6), whole(reference, &mixture, ids, 6));
            tiny::assert_close(&format!("{what}, {input:?}, shared {shared}"), &got, &want);
        }
    });
}

//! Data generation with a scripted model: the result must not depend on how the work was cut, ordered or interrupted.
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::ControlFlow,
    path::Path,
};

use mixse_model::{
    language::{Completion, Finish, LanguageModel, Request, Sampling, Score, ScoreRequest},
    random::Stream,
    tokenizer::Tokenizer,
};
use mixse_selfmoe::{
    brainstorm::{self, Brainstormed},
    domain::{self, Domain},
    filter::Reason,
    jsonl,
    recipe::{Recipe, Settings},
    respond::{self, Responded},
    select::{self, Assembly},
    shard::ShardState,
};

/// A tokenizer whose tokens are bytes.
fn byte_tokenizer() -> Tokenizer {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut spare = 256u32..;
    let mut vocabulary = BTreeMap::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { spare.next().unwrap() };
        vocabulary.insert(char::from_u32(code).unwrap().to_string(), byte);
    }
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "truncation": null,
        "padding": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::from_directory(directory.path()).unwrap()
}

/// Writes a text that depends on the request alone, in an order and up to a number of requests that the test sets.
struct Scripted {
    tokenizer: Tokenizer,
    context: usize,
    reverse: bool,
    /// Fails after so many completions.
    dies_after: usize,
}

impl Scripted {
    fn new() -> Self {
        Self { tokenizer: byte_tokenizer(), context: 1 << 20, reverse: false, dies_after: usize::MAX }
    }

    fn write(&self, request: &Request) -> Completion {
        let prompt = self.tokenizer.decode(&[&request.prefix, &*request.prompt].concat()).unwrap();
        let stream = if let Sampling::TopP { stream, .. } = request.sampling { stream } else { 0 };
        let mut random = Stream::new(stream, &prompt, 0);
        let (text, finish) = match random.below(8) {
            0 => (String::new(), Finish::Eos),
            1 => ("It goes on and".into(), Finish::Length),
            _ if request.sampling == Sampling::Greedy => {
                let n = random.below(100);
                (format!("It is {n} + 1 = {}.\nThe answer is {}.", n + 1, n + 1), Finish::Stop(0))
            }
            2 => ("### Task 9\nno instruction".into(), Finish::Stop(0)),
            _ => {
                let names = ["Anna", "Ben", "Carla", "Dov", "Ewa", "Farid", "Gita", "Hugo", "Ines", "Jun"];
                let things = ["apples", "boats", "coins", "drums", "eggs", "forks", "gloves", "hats"];
                let verbs = ["finds", "sells", "loses", "paints", "counts", "hides", "breaks", "wins"];
                let mut task = || {
                    let mut pick = |list: &[&str]| list[random.below(list.len())].to_owned();
                    let (name, thing, verb, other) =
                        (pick(&names), pick(&things), pick(&verbs), pick(&names));
                    let n = random.below(50);
                    format!(" {name} {verb} {n} {thing} while {other} {verb} some. Total of {thing}?\n\n")
                };
                (format!("{}### Task 5\nInstruction:{}", task(), task()), Finish::Stop(0))
            }
        };
        Completion { ids: text.bytes().map(u32::from).collect(), text, finish }
    }
}

impl LanguageModel for Scripted {
    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn generate(
        &self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Completion) -> ControlFlow<()>,
    ) -> mixse_model::Result<()> {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        if self.reverse {
            order.reverse();
        }
        for (count, i) in order.into_iter().enumerate() {
            if count == self.dies_after {
                return Err(mixse_model::Error::Unsupported("killed".into()));
            }
            if done(i, self.write(&requests[i])).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn score(
        &self,
        _: &[ScoreRequest],
        _: &mut dyn FnMut(usize, Score) -> ControlFlow<()>,
    ) -> mixse_model::Result<()> {
        Err(mixse_model::Error::Unsupported("generation needs no scores".into()))
    }
}

fn math() -> Domain {
    domain::built_in("math").unwrap().unwrap()
}

fn recipe() -> Recipe {
    Recipe::built_in(Settings { seed: 7, ..Settings::default() }).unwrap()
}

const RECORDS: u64 = 60;

/// Runs the whole way in shards of `shard` records; each shard file is made by the calls of `attempt` until complete.
fn generate(
    folder: &Path,
    shard: u64,
    mut attempt: impl FnMut(&mut dyn FnMut(&Scripted) -> mixse_selfmoe::Result<ShardState>, &Path),
) -> Assembly {
    let (domain, recipe) = (math(), recipe());
    let mut go_on = |_| ControlFlow::Continue(());
    let mut records: Vec<Brainstormed> = Vec::new();
    for start in (0..RECORDS).step_by(shard as usize) {
        let path = folder.join(format!("brainstorm-{start}.jsonl"));
        let range = start..(start + shard).min(RECORDS);
        attempt(
            &mut |model| brainstorm::run_shard(model, &domain, &recipe, range.clone(), &path, &mut go_on),
            &path,
        );
        records.extend(jsonl::read::<Brainstormed>(&path).unwrap());
    }
    // The order in which shards are read must not matter either.
    records.reverse();
    let selection = select::select(&domain, &recipe, &records, 50, &|text| Ok(text.len() / 4)).unwrap();
    let mut responses: Vec<Responded> = Vec::new();
    for (i, tasks) in selection.tasks.chunks(shard as usize).enumerate() {
        let path = folder.join(format!("respond-{i}.jsonl"));
        attempt(&mut |model| respond::run_shard(model, &domain, &recipe, tasks, &path, &mut go_on), &path);
        responses.extend(jsonl::read::<Responded>(&path).unwrap());
    }
    select::assemble(&domain, &recipe, "model", selection, &responses).unwrap()
}

fn undisturbed(shard: u64) -> Assembly {
    let folder = tempfile::tempdir().unwrap();
    let model = Scripted::new();
    generate(folder.path(), shard, |run, _| assert_eq!(run(&model).unwrap(), ShardState::Complete))
}

#[test]
fn rows_and_rejections_are_accounted_for() {
    let all = undisturbed(RECORDS);
    let funnel = &all.funnel;
    assert_eq!(funnel.accepted as usize, all.rows.len());
    assert!(all.rows.len() > 20, "{funnel:?}");
    assert_eq!(funnel.rejected.values().sum::<u64>() as usize, all.rejected.len());
    assert_eq!(
        funnel.tasks as usize,
        all.rows.len() + all.rejected.iter().filter(|r| r.stage == select::Stage::Respond).count()
    );
    for reason in [Reason::Empty, Reason::Unfinished] {
        assert!(funnel.rejected.contains_key(&reason), "{reason} is not in {funnel:?}");
    }
    for row in &all.rows {
        assert!(row.output.ends_with(&format!("The answer is {}.", row.checks.answer.as_deref().unwrap())));
        assert!(row.checks.seed_similarity <= 0.7 && row.checks.row_similarity <= 0.7);
        assert_eq!((row.origin.seeds.len(), row.origin.demonstrations.len()), (3, 5));
        assert_eq!((row.origin.model.as_str(), row.origin.prompt.len()), ("model", 64));
    }
    let mut ids: Vec<&str> = all.rows.iter().map(|row| row.id.as_str()).collect();
    ids.dedup();
    assert!(ids.is_sorted() && ids.len() == all.rows.len());
}

#[test]
fn shards_and_order_change_nothing() {
    let expected = undisturbed(RECORDS);
    for shard in [1, 7, 59] {
        assert_eq!(undisturbed(shard), expected, "shards of {shard}");
    }
    let folder = tempfile::tempdir().unwrap();
    let model = Scripted { reverse: true, ..Scripted::new() };
    let reversed =
        generate(folder.path(), 13, |run, _| assert_eq!(run(&model).unwrap(), ShardState::Complete));
    assert_eq!(reversed, expected);
}

#[test]
fn kills_in_the_middle_of_a_line_change_nothing() {
    let expected = undisturbed(RECORDS);
    for steps in [1, 4, 11] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Scripted { dies_after: steps, ..Scripted::new() };
        let continued = generate(folder.path(), 20, |run, path| {
            let partial = format!("{}.partial", path.display());
            loop {
                model.reverse = !model.reverse;
                match run(&model) {
                    Ok(state) => break assert_eq!(state, ShardState::Complete),
                    Err(e) => assert!(e.to_string().contains("killed"), "{e}"),
                }
                assert!(!path.exists());
                // What a kill in the middle of a write leaves behind.
                let text = fs::read_to_string(&partial).unwrap();
                fs::write(&partial, format!("{text}{{\"record\": 1, \"te")).unwrap();
            }
            assert!(!Path::new(&partial).exists());
        });
        assert_eq!(continued, expected, "killed every {steps} rows");
    }
}

#[test]
fn a_complete_shard_is_not_made_again_and_a_foreign_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.jsonl");
    let (domain, recipe) = (math(), recipe());
    let run = |model: &Scripted, records| {
        brainstorm::run_shard(model, &domain, &recipe, records, &path, &mut |_| ControlFlow::Continue(()))
    };
    assert_eq!(run(&Scripted::new(), 0..5).unwrap(), ShardState::Complete);
    let text = fs::read(&path).unwrap();
    let dead = Scripted { dies_after: 0, ..Scripted::new() };
    assert_eq!(run(&dead, 0..5).unwrap(), ShardState::Complete);
    assert_eq!(fs::read(&path).unwrap(), text);
    let message = run(&dead, 5..10).unwrap_err().to_string();
    assert!(message.contains("shard.jsonl") && message.contains("another shard"), "{message}");
}

#[test]
fn the_caller_can_stop_and_continue() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.jsonl");
    let (domain, recipe, model) = (math(), recipe(), Scripted::new());
    let mut seen = Vec::new();
    let state = brainstorm::run_shard(&model, &domain, &recipe, 0..5, &path, &mut |p| {
        seen.push((p.done, p.total));
        if p.done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((state.unwrap(), seen), (ShardState::Stopped, vec![(1, 5), (2, 5)]));
    let state =
        brainstorm::run_shard(&model, &domain, &recipe, 0..5, &path, &mut |_| ControlFlow::Continue(()));
    assert_eq!(state.unwrap(), ShardState::Complete);
}

#[test]
fn prompts_that_do_not_fit_show_fewer_seeds_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (domain, recipe) = (math(), recipe());
    let run = |context: usize, name: &str| {
        let model = Scripted { context, ..Scripted::new() };
        let path = folder.path().join(name);
        brainstorm::run_shard(&model, &domain, &recipe, 0..3, &path, &mut |_| ControlFlow::Continue(()))?;
        jsonl::read::<Brainstormed>(&path)
    };
    let shown = |context| {
        let records = run(context, &format!("{context}"));
        records.map_or_else(|_| Vec::new(), |records| records.iter().map(|r| r.seeds.len()).collect())
    };
    assert_eq!(shown(1 << 16), [3, 3, 3]);
    let counts: BTreeSet<usize> = (1000..6000).step_by(100).flat_map(shown).collect();
    assert_eq!(counts, BTreeSet::from([1, 2, 3]));
    let message = run(100, "never").unwrap_err().to_string();
    assert!(message.contains("max_instruction_tokens") && message.contains("100 tokens"), "{message}");
}

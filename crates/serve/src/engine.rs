//! One thread owns the batch: requests join it as they come and leave it as they end, whoever asked for them.
//!
//! Every variant of the model (the base, each expert, the mixture) has a batch of its own over the same weights. A request
//! whose receiver is dropped leaves at the next step.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use mixse_model::{
    engine,
    generate::{Batch, BatchLimits, Event, Runner},
    language::{Finish, LogProbs, Request},
    mixture::{Mixture, Routing},
    weights::Checkpoint,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{
    error::{Error, Result},
    metrics::Metrics,
    text::Writer,
};

/// A loaded base and what it is served as.
#[derive(Debug)]
pub struct Model {
    /// The base's files; its tokenizer is the one of all variants.
    pub checkpoint: Checkpoint,
    /// The base's weights, and what computes with them.
    pub base: engine::Engine,
    /// What can be asked for, the default first.
    pub variants: Vec<Variant>,
}

/// One way to run the base.
#[derive(Debug)]
pub struct Variant {
    /// Its name in requests.
    pub name: String,
    /// The experts and their routing; `None` is the base alone.
    pub mixture: Option<Mixture>,
}

impl Variant {
    /// Names of the experts that a token may go to, in the order of [`Piece::Text::parts`]; empty where there is no choice.
    pub fn experts(&self) -> &[String] {
        match &self.mixture {
            Some(Mixture { experts, routing: Routing::Learned(_) | Routing::Random { .. } }) => {
                &experts.names
            }
            _ => &[],
        }
    }
}

/// New tokens of one forward pass.
const TOKENS_A_PASS: usize = 256;

/// How much may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are continued side by side.
    pub running: usize,
    /// Requests that may wait beside them.
    pub waiting: usize,
    /// Tokens that the running requests may come to, prompts and answers in full length: it bounds the memory of their keys
    /// and values. A request that needs more runs alone.
    pub tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { running: 32, waiting: 256, tokens: 65_536 }
    }
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// More text.
    Text {
        /// The text.
        text: String,
        /// Each expert's part in the token that completed it; empty where there is no choice.
        parts: Vec<f32>,
        /// The tokens since the last piece, where their log-probabilities are asked for; the text may lag behind them.
        log_probs: Vec<LogProbs>,
    },
    /// More of the prompt was read: its tokens but the first, where their log-probabilities are asked for.
    Prompt(Vec<LogProbs>),
    /// The end.
    Done {
        /// Why.
        finish: Finish,
        /// Tokens written.
        tokens: usize,
        /// How likely the token was that ended the answer and is left out of it, where that is told.
        end: Option<LogProbs>,
    },
    /// The model failed; nothing follows.
    Failed(String),
}

/// A request on its way through the engine.
struct Job {
    variant: usize,
    request: Request,
    pieces: UnboundedSender<Piece>,
    metrics: Arc<Metrics>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.metrics.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Where requests are handed in. Clones share one engine, which ends when the last one is dropped and every answer is
/// finished.
#[derive(Debug, Clone)]
pub struct Engine {
    jobs: Sender<Job>,
    metrics: Arc<Metrics>,
    most: usize,
}

impl Engine {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(model: Arc<Model>, limits: Limits) -> Result<(Self, JoinHandle<()>)> {
        let (jobs, inbox) = mpsc::channel();
        let metrics = Arc::new(Metrics::default());
        let limits = Limits { running: limits.running.max(1), ..limits };
        let counters = metrics.clone();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || Loop::new(&model, limits, &counters).run(&inbox))
            .map_err(Error::Thread)?;
        Ok((Self { jobs, metrics, most: limits.running + limits.waiting }, thread))
    }

    /// Hands in a request for a variant, by its place in [`Model::variants`]. Dropping the receiver cancels it.
    ///
    /// # Errors
    /// Too many requests are in flight, or the engine has stopped.
    pub fn submit(&self, variant: usize, request: Request) -> Result<UnboundedReceiver<Piece>> {
        let waiting = self.metrics.in_flight.fetch_add(1, Relaxed);
        let (pieces, receiver) = unbounded_channel();
        let tokens = request.prefix.len() + request.prompt.len();
        // From here on, dropping the job takes it off the count.
        let job = Job { variant, request, pieces, metrics: self.metrics.clone() };
        if waiting >= self.most {
            self.metrics.refused.fetch_add(1, Relaxed);
            return Err(Error::Busy { waiting });
        }
        self.jobs.send(job).map_err(|_| Error::Stopped)?;
        self.metrics.requests.fetch_add(1, Relaxed);
        self.metrics.prompt_tokens.fetch_add(tokens as u64, Relaxed);
        Ok(receiver)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// A job in a batch.
struct Live {
    job: Job,
    writer: Writer,
}

/// The engine's thread.
struct Loop<'a> {
    model: &'a Model,
    limits: Limits,
    metrics: &'a Metrics,
    /// One a variant; `None`: nobody has asked for the variant yet, or its batch has failed.
    batches: Vec<Option<Batch<'a, Request>>>,
    live: HashMap<usize, Live>,
    waiting: VecDeque<Job>,
    next: usize,
}

impl<'a> Loop<'a> {
    fn new(model: &'a Model, limits: Limits, metrics: &'a Metrics) -> Self {
        let batches = model.variants.iter().map(|_| None).collect();
        Self { model, limits, metrics, batches, live: HashMap::new(), waiting: VecDeque::new(), next: 0 }
    }

    fn run(mut self, inbox: &Receiver<Job>) {
        loop {
            if self.live.is_empty() && self.waiting.is_empty() {
                match inbox.recv() {
                    Ok(job) => self.waiting.push_back(job),
                    // Nobody can ask any more, and everything is answered.
                    Err(_) => return,
                }
            }
            self.waiting.extend(inbox.try_iter());
            self.drop_abandoned();
            self.admit();
            for variant in 0..self.batches.len() {
                self.step(variant);
            }
        }
    }

    fn drop_abandoned(&mut self) {
        let before = self.waiting.len() + self.live.len();
        self.waiting.retain(|job| !job.pieces.is_closed());
        let batches = &mut self.batches;
        self.live.retain(|&number, live| {
            let gone = live.job.pieces.is_closed();
            if let (true, Some(batch)) = (gone, &mut batches[live.job.variant]) {
                batch.remove(number);
            }
            !gone
        });
        let gone = before - self.waiting.len() - self.live.len();
        self.metrics.abandoned.fetch_add(gone as u64, Relaxed);
    }

    fn admit(&mut self) {
        let mut tokens: usize = self.live.values().map(|live| self.most_tokens(&live.job)).sum();
        while let Some(job) = self.waiting.pop_front() {
            tokens += self.most_tokens(&job);
            let fits = self.live.len() < self.limits.running && tokens <= self.limits.tokens;
            if !fits && !self.live.is_empty() {
                self.waiting.push_front(job);
                return;
            }
            self.next += 1;
            match self.join(&job) {
                Ok(()) => {
                    let writer = Writer::new(&self.model.checkpoint.tokenizer, job.request.stop.clone());
                    self.live.insert(self.next, Live { job, writer });
                }
                Err(e) => tell(&job, Piece::Failed(e.to_string())),
            }
        }
    }

    /// Adds a job to the batch of its variant under the next number.
    fn join(&mut self, job: &Job) -> mixse_model::Result<()> {
        let place = &mut self.batches[job.variant];
        let batch = match place {
            Some(batch) => batch,
            None => place.insert(batch(self.model, job.variant)?),
        };
        batch.add(self.next, job.request.clone())
    }

    /// What a request may come to at its end.
    fn most_tokens(&self, job: &Job) -> usize {
        let prompt = job.request.prefix.len() + job.request.prompt.len();
        prompt.saturating_add(job.request.max_new_tokens).min(self.model.base.config.context_length)
    }

    /// One forward pass of a variant's batch.
    fn step(&mut self, variant: usize) {
        let Some(batch) = self.batches[variant].as_mut().filter(|batch| !batch.is_empty()) else { return };
        let events = match batch.step() {
            Ok(events) => events,
            Err(e) => return self.fail(variant, &e.to_string()),
        };
        for event in events {
            match event {
                Event::Token { row, id, parts, log_probs } => self.token(row, id, parts, log_probs),
                Event::Prompt { row, tokens } => {
                    if let Some(live) = self.live.get(&row) {
                        tell(&live.job, Piece::Prompt(tokens));
                    }
                }
                Event::Done { row, completion, end } => {
                    self.end(row, completion.finish, completion.ids.len(), end);
                }
            }
        }
    }

    fn token(&mut self, row: usize, id: u32, parts: Vec<f32>, log_probs: Option<LogProbs>) {
        self.metrics.generated_tokens.fetch_add(1, Relaxed);
        let Some(live) = self.live.get_mut(&row) else { return };
        let text = live.writer.push(&self.model.checkpoint.tokenizer, id);
        if !text.is_empty() || log_probs.is_some() {
            tell(&live.job, Piece::Text { text, parts, log_probs: log_probs.into_iter().collect() });
        }
    }

    fn end(&mut self, row: usize, finish: Finish, tokens: usize, end: Option<LogProbs>) {
        let Some(Live { job, writer }) = self.live.remove(&row) else { return };
        // The text as it continues the prompt may hold a stop string that the answer on its own does not show.
        let finish = if writer.is_stopped() { Finish::Stop(0) } else { finish };
        let text = writer.finish();
        if !text.is_empty() {
            tell(&job, Piece::Text { text, parts: Vec::new(), log_probs: Vec::new() });
        }
        // Off the count first: who is told of the end may ask again at once.
        let pieces = job.pieces.clone();
        drop(job);
        let _ = pieces.send(Piece::Done { finish, tokens, end });
    }

    /// A batch that failed is of no use any more: its requests are told, and the next one opens a new batch.
    fn fail(&mut self, variant: usize, what: &str) {
        self.live.retain(|_, live| {
            let failed = live.job.variant == variant;
            if failed {
                tell(&live.job, Piece::Failed(what.to_owned()));
            }
            !failed
        });
        self.batches[variant] = None;
    }
}

fn batch(model: &Model, variant: usize) -> mixse_model::Result<Batch<'_, Request>> {
    let Model { checkpoint, base, variants } = model;
    let variant = &variants[variant];
    let mut runner = Runner::new(base, &checkpoint.tokenizer, variant.mixture.as_ref());
    // A pass is short enough for the others to wait for: a long prompt is read in many.
    runner.limits = BatchLimits { tokens: TOKENS_A_PASS, ..runner.limits };
    if variant.experts().is_empty() { Batch::new(runner) } else { Batch::telling_parts(runner) }
}

/// A receiver that is gone is noticed before the next step.
fn tell(job: &Job, piece: Piece) {
    let _ = job.pieces.send(piece);
}

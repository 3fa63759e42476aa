//! A pipeline as data: tasks over a directory, each with hashed inputs, named outputs and a recorded state.
//!
//! Nothing passes from one task to another but files, so a task can run in any process, twice, or on another machine
//! that shares the directory:
//!
//! - A task is skipped while the hashes of its inputs and outputs are those of its last success.
//! - Whoever runs it holds its claim (module `claim`): a file made exclusively, kept fresh by a heartbeat, taken over when its holder is dead.
//! - It writes into a work directory of its own, which outlives a killed process, so that long work can continue from
//!   what it has kept there. Finished outputs are synced and renamed into place; the state is written last.
//!
//! ```text
//! RUN/tasks/state/ID.json     input and output hashes, timings      (`/` in an id is written `+` in file names)
//! RUN/tasks/claims/ID.N       who runs it; N grows with every attempt
//! RUN/tasks/work/ID/          unfinished outputs and checkpoints
//! ```
//!
//! Runs that have much in common can share a [`Store`]: what one of them has made, the others take from there.

mod change;
mod claim;
mod error;
mod goal;
mod state;
mod store;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use change::Change;
use claim::{Attempt, Claim};
pub use claim::{Holder, Timing};
pub use error::{Error, Result};
use mixse_files as files;
pub use state::State;
pub use store::Store;

/// What a task's body may fail with.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

type Body<'a> = Box<dyn Fn(&Work<'_>) -> std::result::Result<(), TaskError> + 'a>;

/// Something that a task's result depends on.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The content of a file or directory; a relative path starts at the run directory.
    File(PathBuf),
    /// A part of the configuration.
    Value {
        /// Its name in the state file.
        name: String,
        /// Its content.
        value: serde_json::Value,
    },
    /// A value that has to be the same over a whole run, such as the instructions that its numbers were computed with: a task that was done with
    /// another one is neither taken as done nor made again, but the run is refused ([`Error::Elsewhere`]).
    Fixed {
        /// Its name in the state file.
        name: String,
        /// Its content.
        value: serde_json::Value,
    },
    /// A value that is not known here, by its name: whoever only looks at a plan takes it to be what it was. No task
    /// that needs it can run.
    Unknown(String),
    /// All outputs of another task, which must run before.
    Task(String),
}

impl Input {
    /// An [`Input::Value`].
    pub fn value(name: impl Into<String>, value: serde_json::Value) -> Self {
        Self::Value { name: name.into(), value }
    }

    /// An [`Input::Fixed`].
    pub fn fixed(name: impl Into<String>, value: serde_json::Value) -> Self {
        Self::Fixed { name: name.into(), value }
    }

    /// The name of a value, known or not.
    fn value_name(&self) -> Option<&str> {
        match self {
            Self::Value { name, .. } | Self::Fixed { name, .. } | Self::Unknown(name) => Some(name),
            Self::File(_) | Self::Task(_) => None,
        }
    }
}

/// The name of the input that [`Task::with_version`] adds.
const VERSION: &str = "version";
/// Values of at most so many bytes are kept in the state as they are, so that it can be said how they changed.
const MAX_KEPT_VALUE: usize = 4096;

/// A step of the pipeline.
pub struct Task<'a> {
    id: String,
    inputs: Vec<Input>,
    outputs: Vec<PathBuf>,
    body: Body<'a>,
    shared: bool,
}

impl<'a> Task<'a> {
    /// A task named by words of letters, digits, `-`, `_` and `.`, separated by `/`. `body` makes `outputs` (paths below the run
    /// directory; files or directories) under the names that [`Work::output`] gives. Done twice over the same inputs it must
    /// make the same bytes.
    pub fn new(
        id: impl Into<String>,
        inputs: Vec<Input>,
        outputs: Vec<PathBuf>,
        body: impl Fn(&Work<'_>) -> std::result::Result<(), TaskError> + 'a,
    ) -> Self {
        Self { id: id.into(), inputs, outputs, body: Box::new(body), shared: true }
    }

    /// The same task, never taken from or put into a [`Store`]: its outputs tell about this run.
    #[must_use]
    pub fn of_this_run(self) -> Self {
        Self { shared: false, ..self }
    }

    /// The same task, made by this version of the code for tasks of its kind: the number is raised whenever the code comes to make other
    /// bytes from the same inputs, and is an input like any other. What was made before versions were recorded is refused
    /// ([`Error::Unversioned`]).
    #[must_use]
    pub fn with_version(self, version: u32) -> Self {
        self.with_input(Input::value(VERSION, version.into()))
    }

    /// The same task with a further input.
    #[must_use]
    pub fn with_input(mut self, input: Input) -> Self {
        self.inputs.push(input);
        self
    }

    /// Whether it depends on the value of this name, known or not.
    pub fn reads_value(&self, name: &str) -> bool {
        self.inputs.iter().any(|input| input.value_name() == Some(name))
    }

    /// The values among its inputs that are small enough to be kept, by name.
    fn small_values(&self) -> BTreeMap<String, serde_json::Value> {
        let small = |input: &Input| match input {
            Input::Value { name, value } | Input::Fixed { name, value } => {
                (value.to_string().len() <= MAX_KEPT_VALUE).then(|| (name.clone(), value.clone()))
            }
            _ => None,
        };
        self.inputs.iter().filter_map(small).collect()
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it makes, below the run directory.
    pub fn outputs(&self) -> &[PathBuf] {
        &self.outputs
    }

    fn dependencies(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().filter_map(|input| match input {
            Input::Task(id) => Some(id.as_str()),
            _ => None,
        })
    }

    fn file_name(&self) -> String {
        self.id.replace('/', "+")
    }
}

/// What a running task may use.
#[derive(Debug)]
pub struct Work<'a> {
    run: &'a Path,
    directory: PathBuf,
    claim: &'a Claim,
    figures: RefCell<BTreeMap<String, f64>>,
}

impl Work<'_> {
    /// The run directory, to read inputs from.
    pub fn run(&self) -> &Path {
        self.run
    }

    /// Where the output with this name is to be written; its directory exists.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn output(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.directory.join("outputs").join(name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(Error::io(directory))?;
        }
        Ok(path)
    }

    /// A directory for checkpoints and unfinished files. What a killed attempt left there is still there.
    pub fn scratch(&self) -> &Path {
        &self.directory
    }

    /// Records a figure (tokens, steps, …) in the task's state.
    pub fn record(&self, name: &str, value: f64) {
        self.figures.borrow_mut().insert(name.to_owned(), value);
    }

    /// To be called now and then by long work.
    ///
    /// # Errors
    /// Another process has taken the task over, because this one gave no sign of life for too long: stop.
    pub fn check(&self) -> Result<()> {
        self.claim.check()
    }
}

/// Why a task has to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It never finished.
    New,
    /// These inputs are not what they were.
    Inputs(Vec<Change>),
    /// Only values that must be the same over a whole run are not what they were ([`Input::Fixed`]): it cannot run here.
    Elsewhere(Vec<Change>),
    /// It was done by a program that did not record versions: whether it would make the same now is not known, and it does not run.
    Unversioned,
    /// These outputs are missing or not what they were.
    Outputs(Vec<String>),
    /// Its state file is damaged.
    State(String),
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Inputs and outputs are those of its last success.
    Done,
    /// It can run now.
    Ready(Reason),
    /// These tasks must run before.
    Waiting(Vec<String>),
    /// Someone runs it.
    Running(Holder),
}

/// What happens to tasks, told as it happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// It was done already.
    Skipped(&'a str),
    /// It starts here.
    Started(&'a str, Reason),
    /// It was finished here after so much time.
    Finished(&'a str, Duration),
    /// Another run had made the same; its outputs were taken from the store.
    Reused(&'a str),
    /// Nothing can be done here until the holder has finished it.
    Waiting(&'a str, Holder),
}

/// The tasks of a run directory.
pub struct Plan<'a> {
    directory: PathBuf,
    tasks: Vec<Task<'a>>,
    timing: Timing,
    store: Option<Store>,
    /// Hashes of files that several tasks read.
    hashes: RefCell<HashMap<PathBuf, FileHash>>,
}

/// Hash of a file as it was with this length and modification time.
struct FileHash {
    length: u64,
    modified: Option<SystemTime>,
    hash: String,
}

/// What became of a task that was to be done.
enum Step {
    WasDone,
    Ran,
    Blocked,
    Held(Holder),
}

impl<'a> Plan<'a> {
    /// Checks that ids are unique and well-formed, that every task stands after those it needs, and that outputs are
    /// separate paths inside the directory. Nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Plan`] says which task is wrong.
    pub fn new(directory: impl Into<PathBuf>, tasks: Vec<Task<'a>>) -> Result<Self> {
        let mut ids = HashSet::new();
        let mut outputs: Vec<&Path> = Vec::new();
        for task in &tasks {
            let wrong = |what: String| Err(Error::Plan(format!("task {:?}: {what}", task.id)));
            if !well_formed(&task.id) {
                return wrong(
                    "its id is not made of words of letters, digits, -, _ and . separated by /".into(),
                );
            }
            if let Some(missing) = task.dependencies().find(|id| !ids.contains(*id)) {
                return wrong(format!("it needs {missing:?}, which is not before it"));
            }
            for output in &task.outputs {
                if output.as_os_str().is_empty()
                    || !output.components().all(|c| matches!(c, Component::Normal(_)))
                {
                    return wrong(format!("the output {} is not below the run directory", output.display()));
                }
                if outputs.iter().any(|other| other.starts_with(output) || output.starts_with(other)) {
                    return wrong(format!("the output {} is there twice", output.display()));
                }
                outputs.push(output);
            }
            if !ids.insert(task.id.as_str()) {
                return wrong("it is there twice".into());
            }
        }
        Ok(Self {
            directory: directory.into(),
            tasks,
            timing: Timing::default(),
            store: None,
            hashes: RefCell::default(),
        })
    }

    /// Shares results with other runs.
    #[must_use]
    pub fn with_store(self, store: Store) -> Self {
        Self { store: Some(store), ..self }
    }

    /// Other times than the usual ones between signs of life.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// The tasks, each after those it needs.
    pub fn tasks(&self) -> &[Task<'a>] {
        &self.tasks
    }

    /// Where every task stands. Nothing is written.
    ///
    /// # Errors
    /// An input file cannot be read.
    pub fn status(&self) -> Result<Vec<(&str, Status)>> {
        let mut done = Done::default();
        let mut all = Vec::new();
        for task in &self.tasks {
            let status = match self.inspect(task, &mut done)? {
                Status::Ready(reason) => match claim::holder(&self.claims(), &task.file_name(), self.timing)?
                {
                    Some(holder) => Status::Running(holder),
                    None => Status::Ready(reason),
                },
                other => other,
            };
            all.push((task.id.as_str(), status));
        }
        Ok(all)
    }

    /// The last success of a task, if there is one.
    ///
    /// # Errors
    /// The state file is damaged or cannot be read.
    pub fn state(&self, id: &str) -> Result<Option<State>> {
        let task = self.find(id)?;
        State::read(&self.state_path(task))
    }

    /// Runs what has to be run until everything is done. Tasks that other processes hold are waited for.
    ///
    /// # Errors
    /// A task failed (it can be tried again), or the directory cannot be read or written.
    pub fn run(&self, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        self.run_these(self.tasks.iter().collect(), Done::default(), observe)
    }

    /// Runs one task, or waits until it is done if another process holds it.
    ///
    /// # Errors
    /// As [`Plan::run`]; and there is no such task, or it needs others that are not done.
    pub fn run_task(&self, id: &str, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let task = self.find(id)?;
        let mut done = Done::default();
        for before in self.tasks.iter().take_while(|before| before.id != id) {
            self.inspect(before, &mut done)?;
        }
        if let Status::Waiting(missing) = self.inspect(task, &mut done)? {
            return Err(Error::NotReady { id: id.to_owned(), missing });
        }
        self.run_these(vec![task], done, observe)
    }

    fn run_these(
        &self,
        mut open: Vec<&Task<'a>>,
        mut done: Done,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let mut told = None;
        while !open.is_empty() {
            let mut still_open = Vec::new();
            let mut ran = false;
            let mut held = None;
            for task in open {
                match self.advance(task, &mut done, observe)? {
                    Step::WasDone => observe(Event::Skipped(&task.id)),
                    Step::Ran => ran = true,
                    Step::Blocked => still_open.push(task),
                    Step::Held(holder) => {
                        still_open.push(task);
                        held.get_or_insert((&task.id, holder));
                    }
                }
            }
            open = still_open;
            if !ran && let Some((id, holder)) = held {
                if told.as_ref() != Some(&(id, holder.clone())) {
                    observe(Event::Waiting(id, holder.clone()));
                    told = Some((id, holder));
                }
                std::thread::sleep(self.timing.poll);
            }
        }
        Ok(())
    }

    fn advance(&self, task: &Task<'a>, done: &mut Done, observe: &mut dyn FnMut(Event<'_>)) -> Result<Step> {
        match self.inspect(task, done)? {
            Status::Done => {
                self.clean_up(task);
                return Ok(Step::WasDone);
            }
            Status::Waiting(_) => return Ok(Step::Blocked),
            Status::Ready(Reason::Elsewhere(changes)) => {
                return Err(Error::Elsewhere { id: task.id.clone(), state: self.state_path(task), changes });
            }
            Status::Ready(Reason::Unversioned) => {
                return Err(Error::Unversioned {
                    directory: self.directory.clone(),
                    states: self.directory.join("tasks/state"),
                });
            }
            Status::Ready(_) | Status::Running(_) => {}
        }
        let claim = match claim::attempt(&self.claims(), &task.file_name(), self.timing)? {
            Attempt::Held(holder) => return Ok(Step::Held(holder)),
            Attempt::Mine(claim) => claim,
        };
        // Its last holder may have finished between the look and the claim.
        let reason = match self.inspect(task, done)? {
            Status::Ready(reason) => reason,
            Status::Done => return Ok(Step::WasDone),
            Status::Waiting(_) => return Ok(Step::Blocked),
            Status::Running(holder) => return Ok(Step::Held(holder)),
        };
        if let Some(Input::Unknown(name)) = task.inputs.iter().find(|i| matches!(i, Input::Unknown(_))) {
            return Err(Error::Plan(format!(
                "task {:?} cannot run: its input {name:?} is not known",
                task.id
            )));
        }
        let inputs = self.input_hashes(task, done)?.unwrap_or_default();
        self.enter_work(&self.work_path(task), &inputs)?;
        if self.reuse(task, &inputs, done)? {
            observe(Event::Reused(&task.id));
            return Ok(Step::Ran);
        }
        observe(Event::Started(&task.id, reason));
        let start = Instant::now();
        self.execute(task, inputs, &claim, done)?;
        observe(Event::Finished(&task.id, start.elapsed()));
        Ok(Step::Ran)
    }

    /// Takes the outputs from the store, if they are there.
    fn reuse(&self, task: &Task<'a>, inputs: &BTreeMap<String, String>, done: &mut Done) -> Result<bool> {
        let Some(store) = self.store.as_ref().filter(|_| task.shared) else { return Ok(false) };
        let made = self.work_path(task).join("outputs");
        let Some(state) = store.fetch(&task.id, inputs, &made)? else { return Ok(false) };
        for output in &task.outputs {
            self.publish(task, &made.join(output), output)?;
        }
        let state = State { seconds: 0.0, reused: true, ..state };
        state.write(&self.state_path(task))?;
        done.insert(&task.id, &state);
        self.clean_up(task);
        Ok(true)
    }

    /// Runs the body, publishes the outputs and writes the state.
    fn execute(
        &self,
        task: &Task<'a>,
        inputs: BTreeMap<String, String>,
        claim: &Claim,
        done: &mut Done,
    ) -> Result<()> {
        let started = SystemTime::now();
        let clock = Instant::now();
        let directory = self.work_path(task);
        let work =
            Work { run: &self.directory, directory: directory.clone(), claim, figures: RefCell::default() };
        (task.body)(&work).map_err(|source| Error::Task { id: task.id.clone(), source })?;
        claim.check()?;
        let mut outputs = BTreeMap::new();
        for output in &task.outputs {
            let made = directory.join("outputs").join(output);
            let hash = self.publish(task, &made, output)?;
            outputs.insert(output.display().to_string(), hash);
        }
        let state = State {
            task: task.id.clone(),
            inputs,
            outputs,
            values: task.small_values(),
            host: claim.holder().host.clone(),
            started: started.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
            seconds: clock.elapsed().as_secs_f64(),
            figures: work.figures.into_inner(),
            reused: false,
        };
        state.write(&self.state_path(task))?;
        if let Some(store) = self.store.as_ref().filter(|_| task.shared) {
            store.keep(&state, &self.directory)?;
        }
        done.insert(&task.id, &state);
        self.clean_up(task);
        Ok(())
    }

    /// Removes the work directory of a task that is done. One that stays is only in the way: no reason to fail.
    fn clean_up(&self, task: &Task<'a>) {
        let _ = fs::remove_dir_all(self.work_path(task));
    }

    /// Makes the work directory. What an attempt on other inputs has left in it is removed.
    fn enter_work(&self, directory: &Path, inputs: &BTreeMap<String, String>) -> Result<()> {
        let mark = directory.join("inputs.json");
        let wanted = serde_json::to_vec(inputs).map_err(|e| Error::Plan(e.to_string()))?;
        if fs::read(&mark).is_ok_and(|there| there == wanted) {
            // Outputs are made anew: a killed attempt may have left half a file among them.
            let outputs = directory.join("outputs");
            return match fs::remove_dir_all(&outputs) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&outputs)(e)),
                _ => Ok(()),
            };
        }
        if directory.exists() {
            fs::remove_dir_all(directory).map_err(Error::io(directory))?;
        }
        files::write_atomic(&mark, &wanted).map_err(Error::io(&mark))
    }

    /// Syncs a finished output, gives it its name and returns its hash.
    fn publish(&self, task: &Task<'a>, made: &Path, output: &Path) -> Result<String> {
        let target = self.directory.join(output);
        if !made.exists() {
            let what = format!("it finished without making {}", output.display());
            return Err(Error::Task { id: task.id.clone(), source: what.into() });
        }
        let hash = files::hash_path(made).map_err(Error::io(made))?;
        files::sync_tree(made).map_err(Error::io(made))?;
        let parent = target.parent().unwrap_or(&self.directory);
        files::create_directory(parent).map_err(Error::io(parent))?;
        if made.is_dir() {
            files::replace_directory(made, &target).map_err(Error::io(&target))?;
        } else {
            fs::rename(made, &target).map_err(Error::io(&target))?;
            files::sync_directory(parent).map_err(Error::io(parent))?;
        }
        Ok(hash)
    }

    /// Where a task stands, given those before it that are done; [`Status::Running`] is not looked for.
    fn inspect(&self, task: &Task<'a>, done: &mut Done) -> Result<Status> {
        if done.outputs(&task.id).is_some() {
            return Ok(Status::Done);
        }
        let missing: Vec<String> =
            task.dependencies().filter(|id| done.outputs(id).is_none()).map(str::to_owned).collect();
        if !missing.is_empty() {
            return Ok(Status::Waiting(missing));
        }
        let state = match State::read(&self.state_path(task)) {
            Ok(Some(state)) => state,
            Ok(None) => return Ok(Status::Ready(Reason::New)),
            Err(Error::State { what, .. }) => return Ok(Status::Ready(Reason::State(what))),
            Err(other) => return Err(other),
        };
        let mut inputs = self.input_hashes(task, done)?.unwrap_or_default();
        for input in &task.inputs {
            if let Input::Unknown(name) = input
                && let Some((name, hash)) = state.inputs.get_key_value(&value_name(name))
            {
                inputs.insert(name.clone(), hash.clone());
            }
        }
        let changed = differing(&state.inputs, &inputs);
        if !changed.is_empty() {
            return Ok(Status::Ready(changed_inputs(task, &state, changed)));
        }
        let mut found = BTreeMap::new();
        for output in &task.outputs {
            if let Some(hash) = self.hash_if_there(&self.directory.join(output))? {
                found.insert(output.display().to_string(), hash);
            }
        }
        let changed = differing(&state.outputs, &found);
        if !changed.is_empty() {
            return Ok(Status::Ready(Reason::Outputs(changed)));
        }
        done.insert(&task.id, &state);
        Ok(Status::Done)
    }

    /// Name and hash of every input; `None` if a task that it needs is not done.
    fn input_hashes(&self, task: &Task<'a>, done: &Done) -> Result<Option<BTreeMap<String, String>>> {
        let mut hashes = BTreeMap::new();
        for input in &task.inputs {
            let (name, hash) = match input {
                Input::File(path) => {
                    let full = self.directory.join(path);
                    let hash = self
                        .hash_if_there(&full)?
                        .ok_or_else(|| Error::MissingInput { id: task.id.clone(), path: full })?;
                    (format!("file {}", path.display()), hash)
                }
                Input::Value { name, value } | Input::Fixed { name, value } => {
                    (value_name(name), state::hash_value(value))
                }
                Input::Unknown(_) => continue,
                Input::Task(id) => match done.outputs(id) {
                    Some(hash) => (format!("task {id}"), hash.to_owned()),
                    None => return Ok(None),
                },
            };
            hashes.insert(name, hash);
        }
        Ok(Some(hashes))
    }

    fn hash_if_there(&self, path: &Path) -> Result<Option<String>> {
        let Ok(meta) = fs::metadata(path) else { return Ok(None) };
        if meta.is_dir() {
            return files::hash_path(path).map(Some).map_err(Error::io(path));
        }
        let (length, modified) = (meta.len(), meta.modified().ok());
        if let Some(known) = self.hashes.borrow().get(path)
            && (known.length, known.modified) == (length, modified)
        {
            return Ok(Some(known.hash.clone()));
        }
        let hash = files::hash_path(path).map_err(Error::io(path))?;
        self.hashes.borrow_mut().insert(path.to_owned(), FileHash { length, modified, hash: hash.clone() });
        Ok(Some(hash))
    }

    fn find(&self, id: &str) -> Result<&Task<'a>> {
        self.tasks.iter().find(|task| task.id == id).ok_or_else(|| Error::UnknownTask {
            id: id.to_owned(),
            known: self.tasks.iter().map(|task| task.id.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    fn claims(&self) -> PathBuf {
        self.directory.join("tasks/claims")
    }

    fn work_path(&self, task: &Task<'a>) -> PathBuf {
        self.directory.join("tasks/work").join(task.file_name())
    }

    fn state_path(&self, task: &Task<'a>) -> PathBuf {
        self.directory.join("tasks/state").join(format!("{}.json", task.file_name()))
    }
}

/// Tasks found done, with the hash over their outputs; each is looked at until it is done, and not again in the same call.
#[derive(Debug, Default)]
struct Done(HashMap<String, String>);

impl Done {
    fn insert(&mut self, id: &str, state: &State) {
        self.0.insert(id.to_owned(), state.outputs_hash());
    }

    fn outputs(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }
}

fn differing(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let mut names: Vec<String> =
        old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).cloned().collect();
    names.sort();
    names.dedup();
    names
}

/// What it means that these inputs of a task differ from those of its last success.
fn changed_inputs(task: &Task<'_>, state: &State, changed: Vec<String>) -> Reason {
    let version = value_name(VERSION);
    if changed.contains(&version) && !state.inputs.contains_key(&version) {
        return Reason::Unversioned;
    }
    let is_fixed = |name: &String| {
        let fixed =
            |input: &Input| matches!(input, Input::Fixed { name: fixed, .. } if value_name(fixed) == *name);
        task.inputs.iter().any(fixed)
    };
    let elsewhere = changed.iter().all(is_fixed);
    let now = task.small_values();
    let changes = changed.into_iter().map(|input| {
        let value =
            |values: &BTreeMap<String, serde_json::Value>| values.get(input.strip_prefix("value ")?).cloned();
        let (then, now) = (value(&state.values), value(&now));
        Change { input, then, now }
    });
    if elsewhere { Reason::Elsewhere(changes.collect()) } else { Reason::Inputs(changes.collect()) }
}

/// How a value is called among the inputs of a state.
fn value_name(name: &str) -> String {
    format!("value {name}")
}

fn well_formed(id: &str) -> bool {
    id.split('/').all(|word| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    })
}

#[cfg(test)]
mod tests;

use super::*;

const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(20),
    stale_after: Duration::from_millis(200),
    poll: Duration::from_millis(5),
};

fn is_mine(directory: &Path) -> bool {
    matches!(attempt(directory, "t", TIMING).unwrap(), Attempt::Mine(_))
}

fn elsewhere() -> Holder {
    Holder { host: "elsewhere".into(), ..Holder::this_process() }
}

fn put(directory: &Path, generation: u64, holder: &Holder) -> PathBuf {
    let path = claim_path(directory, "t", generation);
    fs::write(&path, serde_json::to_vec(holder).unwrap()).unwrap();
    path
}

#[test]
fn one_holder_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let Attempt::Mine(first) = attempt(dir.path(), "t", TIMING).unwrap() else { panic!("free") };
    assert!(!is_mine(dir.path()));
    assert_eq!(holder(dir.path(), "t", TIMING).unwrap().unwrap().pid, std::process::id());
    assert_eq!(holder(dir.path(), "other", TIMING).unwrap(), None);
    drop(first);
    assert_eq!(holder(dir.path(), "t", TIMING).unwrap(), None);
    assert!(is_mine(dir.path()));
    assert!(is_mine(dir.path()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_dead_process_of_this_machine_is_followed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let me = Holder::this_process();
    // The same process id, given to another process at another time.
    let earlier = Holder { birth: "1".into(), ..me.clone() };
    let gone = Holder { pid: i32::MAX as u32, ..me };
    for dead in [earlier, gone] {
        let generation = highest(dir.path(), "t").unwrap().unwrap_or(0) + 1;
        put(dir.path(), generation, &dead);
        assert!(is_mine(dir.path()), "{dead:?}");
    }
}

#[test]
fn a_silent_machine_is_followed_after_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), 7, &elsewhere());
    assert!(!is_mine(dir.path()));
    for _ in 0..6 {
        std::thread::sleep(TIMING.stale_after / 3);
        touch(&path).unwrap();
        assert!(!is_mine(dir.path()));
    }
    std::thread::sleep(TIMING.stale_after * 2);
    assert!(is_mine(dir.path()));
}

#[test]
fn the_heart_beats() {
    let dir = tempfile::tempdir().unwrap();
    let Attempt::Mine(claim) = attempt(dir.path(), "t", TIMING).unwrap() else { panic!("free") };
    let length = || fs::metadata(claim_path(dir.path(), "t", 1)).unwrap().len();
    let before = length();
    std::thread::sleep(TIMING.heartbeat * 5);
    assert!(length() > before);
    claim.check().unwrap();
}

#[test]
fn a_holder_notices_that_it_was_followed() {
    let dir = tempfile::tempdir().unwrap();
    let Attempt::Mine(claim) = attempt(dir.path(), "t", TIMING).unwrap() else { panic!("free") };
    put(dir.path(), 2, &elsewhere());
    assert!(matches!(claim.check(), Err(Error::Lost(_))));
    drop(claim);
    assert_eq!(holder(dir.path(), "t", TIMING).unwrap().unwrap().host, "elsewhere");
}

#[test]
fn an_unreadable_claim_counts_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "{\"host\":", "[]"] {
        let path = claim_path(dir.path(), "t", highest(dir.path(), "t").unwrap().unwrap_or(0) + 1);
        fs::write(&path, text).unwrap();
        assert!(!is_mine(dir.path()));
        let old = SystemTime::now() - 2 * UNREADABLE_GRACE;
        File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(is_mine(dir.path()));
    }
}

#[test]
fn racing_threads_never_hold_it_together() {
    let dir = tempfile::tempdir().unwrap();
    let inside = std::sync::atomic::AtomicUsize::new(0);
    let entered = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..40 {
                    if let Attempt::Mine(_claim) = attempt(dir.path(), "t", TIMING).unwrap() {
                        use std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(inside.fetch_add(1, SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, SeqCst);
                        entered.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    assert!(entered.into_inner() > 0);
}

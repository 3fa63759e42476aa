//! The defences that Linux offers, applied by the launcher to itself.

mod private_root;
mod syscalls;

use std::{fmt::Display, fs, path::PathBuf};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid},
};

use super::{Defences, Limits, child::Spec};

type Step<T = ()> = std::result::Result<T, String>;

/// Names the step in an error: launcher failures reach the user as one line.
fn step<T, E: Display>(what: &str, result: std::result::Result<T, E>) -> Step<T> {
    result.map_err(|e| format!("{what}: {e}"))
}

/// First stage: the watcher, and with it everything below, moves into new namespaces. Returns the executable of the
/// second stage as seen from inside.
pub(super) fn enter(spec: &mut Spec) -> Step<PathBuf> {
    step("parent-death signal", prctl::set_pdeathsig(Signal::SIGKILL))?;
    // Where memory runs out, this is to go first. Not every system lets us say so.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let launcher = step("own executable", std::env::current_exe())?;
    spec.work = step("current directory", std::env::current_dir())?;
    spec.user = UNUSED_IDS | (std::process::id() & 0xffff);
    if !spec.defences.namespaces {
        if spec.defences.other_user {
            let user = Some(Uid::from_raw(spec.user));
            step("directory's owner", nix::unistd::chown(&spec.work, user, None))?;
        }
        return Ok(launcher);
    }
    new_namespaces(&mut spec.defences)?;
    private_root::enter(spec, &launcher)
}

/// Root makes them directly and changes its user later; anyone else (and root without rights) needs a user namespace,
/// in which it has all rights over the other new ones until it starts another executable.
fn new_namespaces(defences: &mut Defences) -> Step {
    let others = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let (user, group) = (geteuid(), getegid());
    if user.is_root() && unshare(others).is_ok() {
        return Ok(());
    }
    step("new namespaces", unshare(others | CloneFlags::CLONE_NEWUSER))?;
    step("group setting", fs::write("/proc/self/setgroups", "deny"))?;
    step("user map", fs::write("/proc/self/uid_map", format!("{user} {user} 1")))?;
    step("group map", fs::write("/proc/self/gid_map", format!("{group} {group} 1")))?;
    // Only its own user exists in there.
    defences.other_user = false;
    Ok(())
}

/// Second stage: limits, another user, no way back, Landlock, seccomp. The order matters: each step still needs what
/// the next one takes away.
pub(super) fn restrict(spec: &Spec) -> Step {
    let own_user = spec.defences.namespaces || spec.defences.other_user;
    if spec.defences.other_user {
        change_user(spec.user)?;
    }
    set_limits(&spec.limits, own_user)?;
    // After the change of user, which would clear it.
    step("parent-death signal", prctl::set_pdeathsig(Signal::SIGKILL))?;
    step("no new privileges", prctl::set_no_new_privs())?;
    if spec.defences.landlock {
        step("Landlock", landlock_files(spec))??;
    }
    if spec.defences.seccomp {
        syscalls::apply(spec.defences.namespaces)?;
    }
    Ok(())
}

/// User ids that nothing else on the system has: every watcher takes its own, so that the process limit counts one
/// program alone.
const UNUSED_IDS: u32 = 0x6d78_0000;

fn change_user(id: u32) -> Step {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    step("supplementary groups", setgroups(&[]))?;
    step("other group", setresgid(group, group, group))?;
    step("other user", setresuid(user, user, user))
}

fn set_limits(limits: &Limits, own_user: bool) -> Step {
    // At the soft processor limit the kernel sends a signal of its own, which names the reason; a program that ignores it
    // is killed a second later.
    let cpu = limits.cpu_seconds;
    step("RLIMIT_CPU", setrlimit(Resource::RLIMIT_CPU, cpu, cpu + 1))?;
    let mut all = vec![
        (Resource::RLIMIT_AS, limits.memory),
        (Resource::RLIMIT_FSIZE, limits.file_size),
        (Resource::RLIMIT_NOFILE, 64),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
    ];
    if own_user {
        all.push((Resource::RLIMIT_NPROC, limits.threads));
    }
    for (resource, limit) in all {
        step(&format!("{resource:?}"), setrlimit(resource, limit, limit))?;
    }
    Ok(())
}

fn landlock_files(spec: &Spec) -> std::result::Result<Step, landlock::RulesetError> {
    use landlock::{
        ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
        path_beneath_rules,
    };
    const ABI: ABI = ABI::V6;
    // Rights that the running kernel does not know are left out by the crate; seccomp covers network and signals.
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI))?
        .handle_access(AccessNet::from_all(ABI))?
        .scope(Scope::from_all(ABI))?
        .create()?
        .add_rules(path_beneath_rules(&spec.readable, AccessFs::from_read(ABI)))?
        .add_rules(path_beneath_rules(["/dev/urandom", "/dev/zero"], AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules([&spec.work], AccessFs::from_all(ABI)))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => Err("Landlock: not in this kernel, or switched off".into()),
        _ => Ok(()),
    })
}

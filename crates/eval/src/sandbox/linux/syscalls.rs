//! The system calls that a computing program may make.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::{Step, step};

/// Calls without conditions: files (the file system's own rights decide), memory, threads, time, waiting.
/// Everything that is not listed, old or new, is answered with "not implemented", which libraries know how to handle.
const ALLOWED: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_chdir,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mkdirat,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setitimer,
    libc::SYS_sigaltstack,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sysinfo,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_times,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Their older forms, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLDER: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getpgrp,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLDER: &[i64] = &[];

/// What Landlock does not govern: modes, times, and before its third version (Linux 6.2) the length of files by their path.
/// They need a private root, where there is nothing to spoil.
const IN_PRIVATE_ROOT_ONLY: &[i64] =
    &[libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_utimensat, libc::SYS_truncate];
#[cfg(target_arch = "x86_64")]
const IN_PRIVATE_ROOT_ONLY_OLDER: &[i64] = &[libc::SYS_chmod];
#[cfg(not(target_arch = "x86_64"))]
const IN_PRIVATE_ROOT_ONLY_OLDER: &[i64] = &[];

/// Without those that name another process as a file's owner, which the kernel then sends any signal that one likes.
const FCNTL: &[i32] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GETPIPE_SZ,
];

/// Installs the filter for this process and whatever it becomes. `private_root`: it sees no files but the system, read-only, and
/// its own.
pub(super) fn apply(private_root: bool) -> Step {
    let arch = step("seccomp", TargetArch::try_from(std::env::consts::ARCH))?;
    let filter = step(
        "seccomp",
        rules(private_root).and_then(|rules| {
            let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
            SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)
        }),
    )?;
    let program: seccompiler::BpfProgram = step("seccomp", filter.try_into())?;
    step("seccomp", seccompiler::apply_filter(&program))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(private_root: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ALLOWED.iter().chain(ALLOWED_OLDER).map(|&call| (call, Vec::new())).collect();
    if !private_root {
        for call in IN_PRIVATE_ROOT_ONLY.iter().chain(IN_PRIVATE_ROOT_ONLY_OLDER) {
            rules.remove(call);
        }
        rules.insert(libc::SYS_openat, no_truncation_by_readers(2)?);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, no_truncation_by_readers(1)?);
    }
    rules.insert(libc::SYS_fcntl, any_of(1, FCNTL.iter().map(|command| u64::from(command.unsigned_abs())))?);
    // Threads, not processes. `clone3` hides its flags in memory; refused, libraries fall back on `clone`.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(libc::SYS_clone, vec![when(0, Op::MaskedEq(thread), thread)?]);
    // Signals to itself only: its id stays the same when it becomes the interpreter.
    let own = u64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo] {
        rules.insert(call, vec![when(0, Op::Eq, own)?]);
    }
    // Limits can be read; the fields of `prlimit64` are process, resource, new limits.
    rules.insert(libc::SYS_prlimit64, vec![when(2, Op::Eq, 0)?]);
    // Connected pairs of local sockets, which event loops use to wake themselves; they reach nobody else.
    let local = condition(0, Op::Eq, u64::from(libc::AF_UNIX.unsigned_abs()))?;
    let stream = condition(1, Op::MaskedEq(0xf), u64::from(libc::SOCK_STREAM.unsigned_abs()))?;
    rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![local, stream])?]);
    let harmless =
        [libc::TCGETS, libc::FIOCLEX, libc::FIONCLEX, libc::FIONREAD, libc::FIONBIO, libc::TIOCGWINSZ];
    rules.insert(libc::SYS_ioctl, any_of(1, harmless)?);
    Ok(rules)
}

/// An early Landlock asks for the right to read only where a file is opened for reading, and emptied.
fn no_truncation_by_readers(flags: u8) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let bits = |flag: i32| u64::from(flag.unsigned_abs());
    let access = Op::MaskedEq(bits(libc::O_ACCMODE));
    Ok(vec![
        when(flags, Op::MaskedEq(bits(libc::O_TRUNC)), 0)?,
        when(flags, access.clone(), bits(libc::O_WRONLY))?,
        when(flags, access, bits(libc::O_RDWR))?,
    ])
}

fn any_of(
    argument: u8,
    values: impl IntoIterator<Item = u64>,
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.into_iter().map(|value| when(argument, Op::Eq, value)).collect()
}

fn when(argument: u8, op: Op, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(argument, op, value)?])
}

fn condition(argument: u8, op: Op, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Len::Qword, op, value)
}

//! A root directory that holds nothing but the system, read-only, and an empty directory.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::{FsFlags, statvfs},
    unistd::pivot_root,
};

use super::{
    super::{MAX_FILES, child::Spec},
    Step, step,
};

const NONE: Option<&str> = None;
const LAUNCHER: &str = "/.launcher";
const WORK: &str = "/work";
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// Makes the root on top of the current (empty) directory and moves into it; nothing of it outlives the mount
/// namespace. Returns the launcher's path inside.
pub(super) fn enter(spec: &mut Spec, launcher: &Path) -> Step<PathBuf> {
    let root = spec.work.clone();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    step("private mounts", mount(NONE, "/", NONE, private, NONE))?;
    mount_memory(&root, "size=1m,nr_inodes=256,mode=755", MsFlags::MS_NODEV)?;
    for path in &spec.readable {
        show(&root, path)?;
    }
    for device in DEVICES {
        bind(&root, Path::new(device), Path::new(device), MsFlags::empty())?;
    }
    bind(&root, launcher, Path::new(LAUNCHER), MsFlags::MS_RDONLY)?;
    let work = inside(&root, Path::new(WORK));
    step("directory", fs::create_dir(&work))?;
    let size = format!("size={},nr_inodes={MAX_FILES},mode=777", spec.limits.file_size);
    mount_memory(&work, &size, MsFlags::MS_NODEV | MsFlags::MS_NOSUID)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    step("read-only root", mount(NONE, &root, NONE, read_only, NONE))?;
    // The old root is stacked below the new one and taken away at once.
    step("into the root", std::env::set_current_dir(&root))?;
    step("new root", pivot_root(".", "."))?;
    step("old root", umount2(".", MntFlags::MNT_DETACH))?;
    step("into the new root", std::env::set_current_dir("/"))?;
    spec.work = WORK.into();
    Ok(LAUNCHER.into())
}

fn mount_memory(at: &Path, options: &str, flags: MsFlags) -> Step {
    step("file system in memory", mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)))
}

/// `path` below `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Shows a file or directory of the system under its own name: links stay links, the rest is mounted read-only.
fn show(root: &Path, path: &Path) -> Step {
    let Ok(target) = fs::read_link(path) else { return bind(root, path, path, MsFlags::MS_RDONLY) };
    let link = inside(root, path);
    make_parent(&link)?;
    step(&format!("link {}", path.display()), symlink(target, link))
}

fn bind(root: &Path, from: &Path, to: &Path, extra: MsFlags) -> Step {
    let to = inside(root, to);
    let what = format!("{} in the private root", from.display());
    make_parent(&to)?;
    if from.is_dir() {
        step(&what, fs::create_dir_all(&to))?;
    } else {
        step(&what, fs::write(&to, ""))?;
    }
    step(&what, mount(Some(from), &to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | extra;
    step(&what, mount(NONE, &to, NONE, flags | locked_flags(&to)?, NONE))
}

/// Flags of the original mount, which a user namespace must not drop.
fn locked_flags(at: &Path) -> Step<MsFlags> {
    let flags = step("mount flags", statvfs(at))?.flags();
    let pairs = [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
    ];
    Ok(pairs.into_iter().filter(|(is, _)| flags.contains(*is)).map(|(_, set)| set).collect())
}

fn make_parent(path: &Path) -> Step {
    let Some(parent) = path.parent() else { return Ok(()) };
    step("directory", fs::create_dir_all(parent))?;
    // Whatever the umask: another user goes through them.
    step("directory", fs::set_permissions(parent, fs::Permissions::from_mode(0o755)))
}

//! `--check`: prints what a command would do, tries the steps that may fail, and undoes them again.
//!
//! Invariant: the preview serves nothing, leaves no file, and a running server notices nothing. The
//! exit code is 0 if nothing has failed, and 1 otherwise. This file does not know the settings,
//! because each command adds its own steps.

use std::env;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{self, Path, PathBuf};
use std::process::{self, ExitCode};

use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;

use crate::{print, reason};

/// The steps of a command that is only checked, with a line for each.
#[derive(Debug)]
pub(crate) struct Preview {
    text: String,
    failed: usize,
}

impl Preview {
    /// Makes a preview whose first line is the version.
    pub(crate) fn new() -> Self {
        Self { text: concat!("smol-graceful ", env!("CARGO_PKG_VERSION"), "\n").into(), failed: 0 }
    }

    /// Adds a line for a step that cannot fail.
    pub(crate) fn say(&mut self, line: impl Display) {
        self.text.push_str(&format!("      {line}\n"));
    }

    /// Adds a line for a step that was tried. Both the line and the error name the step.
    pub(crate) fn tried(&mut self, tried: Result<impl Display, impl Display>) {
        match tried {
            Ok(line) => self.text.push_str(&format!("okay  {line}\n")),
            Err(error) => {
                self.text.push_str(&format!("WRONG {error}\n"));
                self.failed += 1;
            }
        }
    }

    /// Prints the lines, and returns the exit code.
    pub(crate) fn end(mut self) -> ExitCode {
        self.text.push_str(match self.failed {
            0 => "it would start\n",
            _ => "it would not start\n",
        });
        let is_printed = print(self.text.as_bytes());
        if is_printed && self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Checks that a process could write its id to a file at `path`.
///
/// # Errors
///
/// Returns an error that names the path.
pub(crate) fn try_pid_file(path: &Path) -> io::Result<()> {
    let tried = path::absolute(path).and_then(|path| {
        // A symbolic link stays, and leads to the file.
        let path = fs::canonicalize(&path).unwrap_or(path);
        if path.file_name().is_none() || fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            return Err(io::Error::other("it is not a regular file; give another path"));
        }
        let is_locked =
            |file| flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
        if File::open(&path).is_ok_and(is_locked) {
            return Err(io::Error::other("it belongs to a keeper that runs"));
        }
        let mut beside = path.into_os_string();
        beside.push(format!(".check-{}", process::id()));
        OpenOptions::new().write(true).create_new(true).open(&beside)?;
        fs::remove_file(beside)
    });
    tried.map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "no such directory; make it first".into(),
            _ => reason(&error),
        };
        io::Error::other(format!("cannot write the pid file {}: {reason}", path.display()))
    })
}

/// Returns the path of the program that a keeper would start.
///
/// # Errors
///
/// Returns an error that names the program.
pub(crate) fn find_program(name: &OsStr) -> io::Result<PathBuf> {
    let shown = Path::new(name).display();
    let is_program = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return if is_program(&path) {
            Ok(path)
        } else {
            Err(io::Error::other(format!("cannot start {shown}: it is not a program")))
        };
    }
    let directories = env::var_os("PATH").unwrap_or_default();
    let mut paths = env::split_paths(&directories).map(|directory| directory.join(name));
    paths.find(|path| is_program(path)).ok_or_else(|| {
        io::Error::other(format!("cannot start {shown}: no directory of PATH has that program"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_the_keeper_finds_them() {
        assert!(find_program(OsStr::new("sh")).unwrap().is_absolute());
        assert_eq!(find_program(OsStr::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        for (name, error) in [
            ("no-such-program", "no directory of PATH has that program"),
            ("./no-such-program", "it is not a program"),
            ("/etc/passwd", "it is not a program"),
            ("/", "it is not a program"),
        ] {
            let found = find_program(OsStr::new(name)).unwrap_err().to_string();
            assert_eq!(found, format!("cannot start {name}: {error}"));
        }
    }

    #[test]
    fn a_pid_file_is_tried_and_nothing_is_left() {
        let directory = env::temp_dir().join(format!("sg-preview-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("app.pid");
        try_pid_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        try_pid_file(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        let lock = File::open(&path).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let error = try_pid_file(&path).unwrap_err().to_string();
        assert!(error.ends_with(": it belongs to a keeper that runs"), "{error}");
        let error = try_pid_file(&directory).unwrap_err().to_string();
        assert!(error.ends_with(": it is not a regular file; give another path"), "{error}");
        let error = try_pid_file(&directory.join("missing/app.pid")).unwrap_err().to_string();
        assert!(error.ends_with(": no such directory; make it first"), "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }
}

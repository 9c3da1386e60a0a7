//! [`KeeperExit`]: how a keeper has ended, as an exit code.
//!
//! Invariant: the code is the one that `policy.rs` has decided on. This file does not know the
//! reason.

use std::process::{ExitCode, Termination};

/// The end of a keeper. If `main` returns this value, it becomes the exit code of the process.
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::Keeper;
///
/// # fn main() -> std::io::Result<()> {
/// let exit = Keeper::new(["/opt/app/server"]).run()?;
/// println!("the newest process has ended with {}", exit.code());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperExit(pub(crate) u8);

impl KeeperExit {
    /// Returns the exit code of the newest child, or 128 plus the number of the signal that has
    /// killed the child. Returns 1 instead of 0 if another child that was alive at the stop has not
    /// ended with 0.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use smol_graceful::Keeper;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let exit = Keeper::new(["/opt/app/server"]).run()?;
    /// assert_eq!(exit.code(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn code(&self) -> u8 {
        self.0
    }
}

impl Termination for KeeperExit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.0)
    }
}

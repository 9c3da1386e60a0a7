//! [`KeeperExit`]: how a keeper has ended, as an exit code.
//!
//! Invariant: the code is what `policy.rs` has decided. Does not know why.

use std::process::{ExitCode, Termination};

/// How a keeper has ended. Returned from `main`, it is the exit code.
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
    /// Returns the exit code of the newest child, or 128 and the number of the signal that has
    /// killed it. Returns 1 instead of 0 if another child that was alive at the stop has not ended
    /// with 0.
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

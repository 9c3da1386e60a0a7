//! The tools that the scenario files share, one file for each of them.
//!
//! Only `pass_repeat_window` sleeps for a fixed time. Every wait has a generous limit
//! ([`PATIENCE`]), so a test that hangs fails.

#![allow(dead_code, unreachable_pub, reason = "each scenario file uses its own part of this")]
#![allow(unused_imports, reason = "each scenario file uses its own part of this")]

mod client;
#[cfg(target_os = "linux")]
pub mod fakes;
mod handlers;
#[cfg(target_os = "linux")]
pub mod handover;
mod log;
#[cfg(target_os = "linux")]
pub mod messages;
mod program;
mod server;
mod stream;
mod temporary;
mod tls;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{FutureExt, future};
use smol::Timer;

pub use self::client::{
    Blocking, Client, Duplex, End, PipeClient, Received, ask_unix, assert_all_okay,
    clients_in_queue, in_flight, small_socket,
};
pub use self::handlers::{
    Answer, BIG, HeldHandlers, UPGRADE_HEAD, handler, held_handlers, upgrades, upgrading,
};
pub use self::log::Log;
pub use self::program::{
    KeeperProcess, ProcessId, Program, Proxy, SERVER, STOP_SIGNALS, activated, chromium, copy_file,
    handle_ignored_signals, install, installed, keep, next_message, number_behind, output,
    output_within, pass_repeat_window, run_ok, server_command, service_manager, sockets_of,
    terminate, wait_at_most,
};
pub use self::server::{
    Pipes, Running, Stoppable, StoppedBy, address_of, assert_drains, free_port, is_refused,
    long_grace, short_linger, tcp, wait_for_close,
};
pub use self::stream::{ReadBy, pending_at_first};
pub use self::temporary::Directory;
pub use self::tls::{TlsStream, certificate, tls_client};

/// The time after which a test fails, far more than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `done` returns `true`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a future and returns its result, and panics if the future does not end.
pub fn within_patience<T>(future: impl Future<Output = T>) -> T {
    let late = async {
        Timer::after(PATIENCE).await;
        panic!("waited in vain");
    };
    future::block_on(future.or(late))
}

/// Runs `test` for each of `cases`, all at the same time.
pub fn for_each<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let test = &test;
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || test(case));
        }
    });
}

/// Runs one case of a table, and names the case if it fails.
pub fn case(name: &str, run: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_ok(), "failed: {name:?}");
}

/// A value that tells the test of its drop.
pub struct Dropped(pub Sender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Returns bytes as text, for messages and comparisons.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns bytes of which no two neighbours are the same.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

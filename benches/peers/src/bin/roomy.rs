//! smol-graceful for `benches/crowd`. It is like `ours`, with more connections than the default
//! (10,000), and an idle timeout that is longer than all rounds.

use std::time::Duration;

use peers::http_types_app::handle;
use smol_graceful::{Limits, Outcome, ServeError, Server, run};

fn main() -> Result<Outcome, ServeError> {
    let idle_timeout = Duration::from_secs(24 * 60 * 60);
    let limits = Limits::default().connections(15_000).idle_timeout(idle_timeout);
    run(Server::new(handle).limits(limits), [peers::address()])
}

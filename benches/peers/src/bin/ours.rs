//! smol-graceful.

use peers::http_types_app::handle;
use smol_graceful::{Outcome, ServeError, Server, run};

fn main() -> Result<Outcome, ServeError> {
    run(Server::new(handle), [peers::address()])
}

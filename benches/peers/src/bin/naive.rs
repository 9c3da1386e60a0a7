//! async-h1's own `accept` on smol, as in its documentation.

use std::io;
use std::sync::Arc;
use std::thread;

use peers::http_types_app::handle;
use smol::net::TcpListener;
use smol::{Executor, future};

fn main() -> io::Result<()> {
    let executor = Arc::new(Executor::new());
    for _ in 0..peers::threads() {
        let executor = executor.clone();
        thread::spawn(move || smol::block_on(executor.run(future::pending::<()>())));
    }
    future::block_on(async {
        let listener = TcpListener::bind(peers::address()).await?;
        let spawner = executor.clone();
        let accept = async move {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                spawner.spawn(async_h1::accept(stream, handle)).detach();
            }
        };
        executor.spawn(accept).await
    })
}

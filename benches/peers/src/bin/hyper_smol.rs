//! hyper 1 on smol, through smol-hyper. TERM ends it without a drain.

use std::io;
use std::sync::Arc;
use std::thread;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use peers::hyper_app::handle;
use smol::net::TcpListener;
use smol::{Executor, future};
use smol_hyper::rt::FuturesIo;

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
                let connection = http1::Builder::new()
                    .serve_connection(FuturesIo::new(stream), service_fn(handle));
                spawner.spawn(connection).detach();
            }
        };
        executor.spawn(accept).await
    })
}

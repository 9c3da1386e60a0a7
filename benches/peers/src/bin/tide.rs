//! tide 0.16, the other server on async-h1. TERM ends it without a drain.

use std::io;

use async_std::task;
use tide::{Body, Request, Response};

fn main() -> io::Result<()> {
    // SAFETY: this process has no other thread yet.
    unsafe { std::env::set_var("ASYNC_STD_THREAD_COUNT", peers::threads().to_string()) };
    let mut app = tide::new();
    app.at("/").get(async |_| Ok("okay"));
    app.at("/echo").post(async |mut request: Request<()>| Ok(Response::from(request.take_body())));
    app.at("/upload")
        .post(async |request: Request<()>| Ok(peers::count(request).await?.to_string()));
    app.at("/download").get(async |_| {
        let bytes = peers::download();
        Ok(Body::from_reader(bytes, Some(bytes.len())))
    });
    task::block_on(app.listen(peers::address()))
}

//! trillium 0.2 on smol, which handles TERM by itself.

use peers::{address, count, download, threads};
use trillium::{Body, Conn, Method, Status};

fn main() {
    // SAFETY: this process has no other thread yet.
    unsafe { std::env::set_var("ASYNC_GLOBAL_EXECUTOR_THREADS", threads().to_string()) };
    trillium_smol::config().with_socketaddr(address()).with_nodelay().run(handle);
}

async fn handle(mut conn: Conn) -> Conn {
    match (conn.method(), conn.path()) {
        (Method::Get, "/") => conn.ok("okay"),
        // This version cannot make a response of the request's body, so the handler reads the whole
        // body.
        (Method::Post, "/echo") => match conn.request_body().await.read_bytes().await {
            Ok(bytes) => conn.ok(bytes),
            Err(_) => conn.with_status(Status::BadRequest).halt(),
        },
        (Method::Post, "/upload") => match count(conn.request_body().await).await {
            Ok(count) => conn.ok(count.to_string()),
            Err(_) => conn.with_status(Status::BadRequest).halt(),
        },
        (Method::Get, "/download") => conn.ok(Body::new_static(download())),
        _ => conn,
    }
}

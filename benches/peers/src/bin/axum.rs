//! axum 0.8, which stops at TERM by its own graceful shutdown.

use std::io;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> io::Result<()> {
    let routes = Router::new()
        .route("/", get(async || "okay"))
        .route("/echo", post(async |body: Body| body))
        .route("/upload", post(upload))
        .route("/download", get(async || Bytes::from_static(peers::download())));
    let mut term = signal(SignalKind::terminate())?;
    let stop = async move {
        term.recv().await;
    };
    let listener = TcpListener::bind(peers::address()).await?.tap_io(|stream| {
        // An error is ignored, because the read fails, too, if the connection is gone.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}

async fn upload(mut body: Body) -> String {
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, Bytes::len);
    }
    count.to_string()
}

//! The calls in the tables of `docs/embedding.md` compile.
//!
//! The module `calls` has each call a second time, where it is compiled and never made, and a test
//! compares both. The blocks of the page are doctests. A test of its own compiles the block for
//! tide, so that a build of this crate does not need tide.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Directory, output_within, text};

/// The calls of the tables, in functions with the values that they need.
#[allow(dead_code, unused, clippy::all, reason = "compiled, and never called")]
#[rustfmt::skip]
mod calls {
    use std::{future::Future, io, time::Duration};

    use futures_lite::FutureExt;
    use smol_graceful::*;
    // begin
    use smol_graceful::http_types;
    use smol_graceful::{Body, Request, Response};

    async fn handler(request: Request) -> Result<Response> { Ok("hello".into()) }

    async fn a_server(listener: Listener, timeout: Duration, n: usize) -> Result<(), ServeError> {
        let handshake = |connection| async { Ok(connection) };
        let count = |seen: &Exchange| {};
        let (signal, connections) = (async {}, futures_lite::stream::empty());
        let executor = std::sync::Arc::new(smol::Executor::new());

        let shutdown = Shutdown::new().grace(timeout);
        Shutdown::new().grace(timeout);
        let server = || Server::new(handler);
        run(server(), [":8082"])?;
        { let server = server(); run(server, [":8082"])?; }
        { let server = server(); server.serve([":8082"]).await?; }
        { let server = server(); let listener = listener.clone(); server.serve([listener]).await?; }
        { let server = server(); let listener = listener.clone(); server.serve_until([listener], signal).await?; }
        { let server = server(); let listener = listener.clone(); server.executor(executor).serve([listener]).await?; }
        { let server = server(); let listener = listener.clone(); server.executor(ServerExecutor::global()).serve([listener]).await?; }
        { let server = server(); let serve = server.serve([listener]); shutdown.obey(signals()?, serve).await?; }
        { let server = server(); server.shutdown(&shutdown); }
        { let server = server(); server.observe(count); }
        Listener::bind("127.0.0.1:8082")?;
        Listener::bind(":8443")?.wrap(handshake);
        Listener::from_stream(connections);
        shutdown.stop();
        shutdown.abort();
        let outcome: Outcome = shutdown.stop_and_drain().await;
        (outcome.is_drained(), outcome.cut);
        Limits::default().head_timeout(timeout).idle_timeout(timeout).stall_timeout(timeout);
        Limits::default().head_bytes(n).headers(n);
        Limits::default().body_bytes(n as u64);
        Connection::pair();
        matchit::Router::<()>::new();
        Ok(())
    }

    fn in_tide(request: impl AsRef<Request>) {
        Peer::of(request.as_ref());
    }

    async fn a_handler<T: Send + Sync + 'static>(mut request: Request, token: Token, future: impl Future) -> Result<()> {
        Token::of(&request);
        Client::of(&request);
        Peer::of(&request);
        ConnectionInfo::of(&request);
        target(&request);
        request.header("host");
        request.header("accept");
        (request.remote(), request.host());
        (request.url().path(), request.url().query());
        request.method() == Method::Post;
        request.ext().get::<T>();
        let order: u64 = request.body_json().await?;
        request.body_bytes().await?;
        token.guard()?;
        token.stopping().await;
        token.stopping();
        token.until_stop(future).await;
        token.child();
        Ok(())
    }

    async fn a_response(chunks: Vec<io::Result<String>>, error: io::Error) -> Result<Response> {
        if let Some(body_error) = BodyError::find(&error) { body_error.status(); }
        let error = Error::from(error);
        BodyError::find(error.as_ref());
        let chunks = futures_lite::stream::iter(chunks);
        let body = stream_body(chunks);
        let mut response = Response::new(404);
        response.set_body(body);
        response.insert_header("connection", "close");
        response.recv_upgrade().await;
        let answer = async { Err(Error::from_str(404, "no such thing")) };
        let late = async { Ok("hello".into()) };
        answer.or(late).await
    }
    // end
}

#[test]
fn each_call_of_the_tables_compiles() {
    let source = include_str!("embedding.rs");
    let calls = source.split("// begin").nth(1).unwrap().split("// end").next().unwrap();
    let page = page();
    let mut is_table = false;
    let (mut count, mut missing) = (0, Vec::new());
    for line in page.lines() {
        is_table = line.starts_with('|') && (is_table || line.starts_with("| there | here"));
        if !is_table {
            continue;
        }
        let here = line.split(" | ").nth(1).unwrap_or_default();
        for code in here.split('`').skip(1).step_by(2) {
            let is_there = match code.ends_with(".rs") {
                true => Path::new(env!("CARGO_MANIFEST_DIR")).join(code).exists(),
                false => calls.contains(code.strip_prefix("let shutdown = ").unwrap_or(code)),
            };
            count += 1;
            if !is_there {
                missing.push(code);
            }
        }
    }
    assert!(missing.is_empty(), "not among the calls of tests/embedding.rs: {missing:#?}");
    assert!(count > 100, "{count} calls are no longer in tables that this test can read");
}

/// The block for tide, with the crates that it names.
#[test]
#[ignore = "downloads and builds tide"]
fn the_block_for_tide_compiles() {
    let page = page();
    let mut blocks = page.split("```rust,ignore\n").skip(1).map(|rest| rest.split("```").next());
    let block = blocks.next().flatten().expect("the block for tide");
    assert!(blocks.next().is_none(), "one block alone is no doctest");
    let own = env!("CARGO_MANIFEST_DIR");
    let manifest = format!(
        r#"[package]
name = "from-tide"
version = "0.0.0"
edition = "2024"

[dependencies]
smol = "2"
smol-graceful = {{ path = {own:?}, default-features = false }}
tide = {{ version = "0.16", default-features = false }}
tide-websockets = {{ version = "0.4", default-features = false }}

[workspace]
"#
    );
    let directory = Directory::new();
    fs::create_dir(directory.join("src")).unwrap();
    fs::write(directory.join("src/main.rs"), block).unwrap();
    fs::write(directory.join("Cargo.toml"), manifest).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("check").current_dir(directory.path());
    cargo.env("CARGO_TARGET_DIR", Path::new(own).join("target/from-tide"));
    let output = output_within(&mut cargo, b"", Duration::from_secs(600));
    assert!(output.status.success(), "{}", text(&output.stderr));
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/embedding.md")).unwrap()
}

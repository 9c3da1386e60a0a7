//! An echo over WebSocket: what an upgraded connection is like, and how it ends when the server
//! stops.
//!
//! Run with:
//!
//! ```
//! cargo run --example websocket -- 127.0.0.1:8082
//! ```
//!
//! In a browser's console: `s = new WebSocket("ws://127.0.0.1:8082"); s.onmessage = s.onclose =
//! console.log`, then `s.send("hello")`. Stop the server with Ctrl-C: each client is told that it
//! is going away (1001), and the drain waits until it has taken leave, too.

use std::time::Duration;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::handshake::derive_accept_key;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use async_tungstenite::tungstenite::{Error, Message};
use futures_lite::{FutureExt, StreamExt};
use http_types::headers::UPGRADE;
use http_types::upgrade::Connection;
use smol::Timer;
use smol_graceful::{Outcome, Request, Response, ServeError, Server, StatusCode, Token, run};

/// How long a client may take to answer our Close.
const PARTING: Duration = Duration::from_secs(5);

async fn handle(request: Request) -> http_types::Result<Response> {
    let Some(key) = key(&request) else { return Ok("speak WebSocket to me\n".into()) };
    let mut response = Response::new(StatusCode::SwitchingProtocols);
    response.insert_header(UPGRADE, "websocket");
    response.insert_header("Sec-WebSocket-Accept", derive_accept_key(key.as_bytes()));

    // The connection comes when the response has been sent, if it comes at all.
    let upgraded = response.recv_upgrade().await;
    let token = Token::of(&request);
    let task = async move {
        let Some(connection) = upgraded.await else { return };
        match echo(connection, &token).await {
            Ok(()) | Err(Error::ConnectionClosed) => log::info!("a client has taken leave"),
            Err(error) => log::warn!("a client is gone: {error}"),
        }
    };
    smol::spawn(task).detach();
    Ok(response)
}

/// The key of a WebSocket handshake (RFC 6455 section 4.2.1), if `request` is one. Whether the
/// client wants the connection upgraded at all, the server looks after itself.
fn key(request: &Request) -> Option<String> {
    let has = |name: &str, value| {
        request.header(name)?.as_str().eq_ignore_ascii_case(value).then_some(())
    };
    has("Upgrade", "websocket")?;
    has("Sec-WebSocket-Version", "13")?;
    Some(request.header("Sec-WebSocket-Key")?.as_str().to_owned())
}

/// Sends back what comes, until the client takes leave or the server stops.
async fn echo(connection: Connection, token: &Token) -> Result<(), Error> {
    let mut socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
    while let Some(message) = token.until_stop(socket.next()).await {
        match message.transpose()? {
            Some(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message).await?,
            Some(_) => {}
            None => return Ok(()),
        }
    }
    let reason = CloseFrame { code: CloseCode::Away, reason: "stopping".into() };
    socket.close(Some(reason)).await?;
    let parted = async {
        while socket.next().await.transpose()?.is_some() {}
        Ok(())
    };
    let in_vain = async {
        Timer::after(PARTING).await;
        Ok(())
    };
    parted.or(in_vain).await
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8082".to_owned());
    run(Server::new(handle), [&*address])
}

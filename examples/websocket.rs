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
use http_types::Method;
use http_types::headers::UPGRADE;
use http_types::upgrade::Connection;
use smol::Timer;
use smol_graceful::{Outcome, Request, Response, ServeError, Server, StatusCode, Token, run};

/// How long a client may take to answer our Close.
const PARTING: Duration = Duration::from_secs(5);

const VERSION: &str = "Sec-WebSocket-Version";

/// Answers a handshake (RFC 6455 section 4.2), and starts the conversation behind it.
async fn handle(request: Request) -> http_types::Result<Response> {
    // An echo may be used from any page. A server with users also checks `Origin` (section 10.2).
    if request.method() != Method::Get {
        let text = "a WebSocket begins with GET\n";
        return Ok(refuse(StatusCode::MethodNotAllowed, text, &[("Allow", "GET")]));
    }
    let version = request.header(VERSION);
    if !wants_websocket(&request) || version.is_none_or(|version| version != "13") {
        let offer = [("Connection", "Upgrade"), ("Upgrade", "websocket"), (VERSION, "13")];
        return Ok(refuse(StatusCode::UpgradeRequired, "speak WebSocket 13 to me\n", &offer));
    }
    // The server hands no connection over before the request's body has been read.
    let (Some(key), Some(true)) = (key(&request), request.is_empty()) else {
        let text = "send 16 bytes in base64 as the key, and no body\n";
        return Ok(refuse(StatusCode::BadRequest, text, &[]));
    };
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

fn refuse(status: StatusCode, text: &str, fields: &[(&str, &str)]) -> Response {
    let mut response = Response::new(status);
    response.set_body(text);
    for (name, value) in fields {
        response.insert_header(*name, *value);
    }
    response
}

/// Returns `true` if `Upgrade` lists WebSocket. The server hides the field from this handler where
/// it has no effect: without `Connection: upgrade`, and on HTTP/1.0.
fn wants_websocket(request: &Request) -> bool {
    let lines = request.header(UPGRADE).into_iter().flatten();
    let mut protocols = lines.flat_map(|line| line.as_str().split(','));
    protocols.any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
}

/// Returns the key of the handshake, if it is the only one and 16 bytes in base64.
fn key(request: &Request) -> Option<&str> {
    let values = request.header("Sec-WebSocket-Key")?;
    let key = values.as_str();
    // The last two bits of 16 bytes and four zeros make the digit before the padding.
    let [digits @ .., b'A' | b'Q' | b'g' | b'w', b'=', b'='] = key.as_bytes() else { return None };
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    (values == key && digits.len() == 21 && digits.iter().all(is_digit)).then_some(key)
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

//! An echo over WebSocket, which shows an upgraded connection and its end when the server stops.
//!
//! Run with:
//!
//! ```
//! cargo run --example websocket -- 127.0.0.1:8082
//! ```
//!
//! In a browser's console: `s = new WebSocket("ws://127.0.0.1:8082"); s.onmessage = s.onclose =
//! console.log`, then `s.send("hello")`. Stop the server with Ctrl-C. The server then sends each
//! client a Close with the code 1001 (going away), and the drain waits a few seconds for the
//! answers.

use std::time::Duration;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::error::ProtocolError;
use async_tungstenite::tungstenite::handshake::derive_accept_key;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use async_tungstenite::tungstenite::{Error, Message};
use futures_lite::{AsyncWriteExt, FutureExt, StreamExt, io};
use smol::Timer;
use smol_graceful::headers::UPGRADE;
use smol_graceful::http_types::upgrade::Connection;
use smol_graceful::{
    Method, Outcome, Request, Response, Result, ServeError, Server, StatusCode, Token, run,
};

/// The longest time for the end of a conversation, with the rest of the output and the client's
/// answer.
const PARTING: Duration = Duration::from_secs(5);

/// The largest number of bytes in a message, which bounds the memory that a client can take.
const MAX_MESSAGE: usize = 1024 * 1024;

const VERSION: &str = "Sec-WebSocket-Version";

type Socket = WebSocketStream<Connection>;

/// Answers a handshake (RFC 6455 section 4.2), and starts the conversation after it.
async fn handle(request: Request) -> Result<Response> {
    // Any page may use this echo. A server with users also has to check `Origin` (section 10.2).
    if request.method() != Method::Get {
        let text = "a WebSocket begins with GET\n";
        return Ok(refuse(StatusCode::MethodNotAllowed, text, &[("Allow", "GET")]));
    }
    let version = request.header(VERSION);
    if !wants_websocket(&request) || version.is_none_or(|version| version != "13") {
        let offer = [("Connection", "Upgrade"), ("Upgrade", "websocket"), (VERSION, "13")];
        return Ok(refuse(StatusCode::UpgradeRequired, "speak WebSocket 13 to me\n", &offer));
    }
    // The server hands a connection over only after the request's body has been read.
    let (Some(key), Some(true)) = (key(&request), request.is_empty()) else {
        let text = "send 16 bytes in base64 as the key, and no body\n";
        return Ok(refuse(StatusCode::BadRequest, text, &[]));
    };
    let mut response = Response::new(StatusCode::SwitchingProtocols);
    response.insert_header(UPGRADE, "websocket");
    response.insert_header("Sec-WebSocket-Accept", derive_accept_key(key.as_bytes()));

    // The connection comes after the response was sent, unless that fails.
    let upgraded = response.recv_upgrade().await;
    let token = Token::of(&request);
    let task = async move {
        let Some(connection) = upgraded.await else { return };
        match converse(connection, &token).await {
            Ok(()) => log::info!("a client has taken leave"),
            Err(error) => log::info!("a client is gone: {error}"),
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

/// Returns `true` if `Upgrade` lists WebSocket. The server hides this field from the handler if it
/// has no effect, which is without `Connection: upgrade` and on HTTP/1.0.
fn wants_websocket(request: &Request) -> bool {
    let lines = request.header(UPGRADE).into_iter().flatten();
    let mut protocols = lines.flat_map(|line| line.as_str().split(','));
    protocols.any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
}

/// Returns the key of the handshake, if there is exactly one and it is 16 bytes in base64.
fn key(request: &Request) -> Option<&str> {
    let values = request.header("Sec-WebSocket-Key")?;
    let key = values.as_str();
    // The last two bits of 16 bytes and four zeros make the digit before the padding.
    let [digits @ .., b'A' | b'Q' | b'g' | b'w', b'=', b'='] = key.as_bytes() else { return None };
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    (values == key && digits.len() == 21 && digits.iter().all(is_digit)).then_some(key)
}

/// Talks to a client until one side ends the conversation, and limits how long the end takes.
async fn converse(connection: Connection, token: &Token) -> Result<(), Error> {
    // The buffer is small, because it stays in memory while the client is idle.
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .max_frame_size(Some(MAX_MESSAGE))
        .max_message_size(Some(MAX_MESSAGE));
    let mut socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
    let echoed = echo(&mut socket, token).await;
    let parting = async {
        match echoed {
            Ok(close) => take_leave(socket, close).await,
            Err(error) => reject(socket, error).await,
        }
    };
    let in_vain = async {
        Timer::after(PARTING).await;
        Err(io::Error::from(io::ErrorKind::TimedOut).into())
    };
    parting.or(in_vain).await
}

/// Sends each message back. Returns the Close to send to the client, or `None` if the client has
/// sent one first, because tungstenite answers a client's Close itself.
async fn echo(socket: &mut Socket, token: &Token) -> Result<Option<CloseFrame>, Error> {
    while let Some(message) = token.until_stop(socket.next()).await {
        let answer = match message.transpose()? {
            Some(message @ (Message::Text(_) | Message::Binary(_))) => message,
            // tungstenite would send this Pong by itself without waiting, so a client that never
            // reads could fill the memory with Pongs.
            Some(Message::Ping(data)) => Message::Pong(data),
            Some(Message::Pong(_) | Message::Frame(_)) => continue,
            Some(Message::Close(_)) | None => return Ok(None),
        };
        // The stop ends the wait for a client that does not read. The message is in the buffer of
        // `socket` by then, because `or` polls `send` first, and goes out before the Close.
        let stop = async {
            token.stopping().await;
            Ok(())
        };
        socket.send(answer).or(stop).await?;
    }
    Ok(Some(CloseFrame { code: CloseCode::Away, reason: "stopping".into() }))
}

/// Sends `close`, if there is one, and reads until both sides have sent a Close.
async fn take_leave(mut socket: Socket, close: Option<CloseFrame>) -> Result<(), Error> {
    if let Some(close) = close {
        socket.close(Some(close)).await?;
    }
    match socket.try_for_each(|message| message.map(drop)).await {
        Ok(()) => Ok(()),
        Err(error) => reject(socket, error).await,
    }
}

/// Sends the Close that names the client's mistake (section 7.4.1). Returns `error`.
async fn reject(mut socket: Socket, error: Error) -> Result<(), Error> {
    let code = match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return Err(error),
        Error::Protocol(_) => CloseCode::Protocol,
        Error::Utf8(_) => CloseCode::Invalid,
        Error::Capacity(_) => CloseCode::Size,
        _ => return Err(error),
    };
    // If the server has sent a Close already, this second one fails, and the client does not need
    // it.
    let _ = socket.close(Some(CloseFrame { code, reason: "".into() })).await;
    // If the client's bytes stayed unread, the kernel would reset the connection, and the client
    // might lose the Close.
    let mut connection = socket.into_inner();
    connection.close().await?;
    io::copy(connection, io::sink()).await?;
    Err(error)
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8082".to_owned());
    run(Server::new(handle), [&*address])
}

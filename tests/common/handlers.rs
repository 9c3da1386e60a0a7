//! Handlers that a test holds back.
//!
//! [`HeldHandlers`] tells a test that a handler has been called, and lets all handlers go on at
//! once. [`held_handlers`] returns the handler that most tests need.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::task::{Context, Poll};

use futures_lite::io::BufReader;
use futures_lite::{AsyncRead, AsyncWriteExt, future};
use http_types::headers::UPGRADE;
use http_types::upgrade::Connection as Upgraded;
use smol::channel;
use smol_graceful::{Body, Peer, Request, Response, StatusCode, Token};

use super::PATIENCE;

/// The handlers of a server, which wait until the test releases them.
pub struct HeldHandlers {
    entered: Receiver<String>,
    release: Mutex<Option<channel::Sender<()>>>,
}

impl HeldHandlers {
    /// Returns the test's side, and two channels for the handlers. A handler sends its path by the
    /// first channel, and waits until the second channel is closed. Nothing is ever sent on the
    /// second channel.
    pub fn new() -> (Self, mpsc::Sender<String>, channel::Receiver<()>) {
        let (enter, entered) = mpsc::channel();
        let (release, released) = channel::bounded(1);
        (Self { entered, release: Mutex::new(Some(release)) }, enter, released)
    }

    /// Waits until a handler has been called with this path.
    pub fn wait_for_call(&self, path: &str) {
        assert_eq!(self.entered.recv_timeout(PATIENCE).expect("no handler was called"), path);
    }

    /// Lets all handlers go on, and holds back no later call.
    pub fn release(&self) {
        self.release.lock().unwrap().take();
    }
}

pub type Answer = future::Boxed<http_types::Result<Response>>;

/// More bytes than a kernel or a pipe takes in for a client that does not read.
pub const BIG: usize = 32 * 1024 * 1024;

/// Returns a handler, and the test's side of its calls.
///
/// `/now` answers at once. `/echo` sends the body back as it comes. `/peer` answers with the
/// client. `/big` has [`BIG`] bytes. `/panic` panics, and `/panic-in-body` and `/panic-in-big-body`
/// panic after the response has begun.
///
/// Three paths report their call to the test. `/wait` waits until the test releases the handlers.
/// `/read` reads the body and answers with its length. `/until-stop` waits for the stop, reports a
/// second time, and waits until the test releases the handlers.
pub fn held_handlers() -> (HeldHandlers, impl Fn(Request) -> Answer + Send + Sync + 'static) {
    let (handlers, enter, released) = HeldHandlers::new();
    let handler = move |mut request: Request| -> Answer {
        let (enter, released) = (enter.clone(), released.clone());
        Box::pin(async move {
            let path = request.url().path().to_owned();
            let enter = || {
                // The test may have dropped its side.
                let _ = enter.send(path.clone());
            };
            Ok(match path.as_str() {
                "/now" => "now".into(),
                "/echo" => request.take_body().into(),
                "/peer" => Peer::of(&request).to_string().into(),
                "/big" => vec![b'x'; BIG].into(),
                "/panic" => panic!("as the client wished"),
                "/panic-in-body" => panicking_body(1).into(),
                "/panic-in-big-body" => panicking_body(100_000).into(),
                "/wait" => {
                    enter();
                    let _ = released.recv().await;
                    "done".into()
                }
                "/read" => {
                    enter();
                    format!("{} bytes", request.body_bytes().await?.len()).into()
                }
                "/until-stop" => {
                    enter();
                    Token::of(&request).stopping().await;
                    enter();
                    // The handler gets time after the stop, too (rule S10).
                    let _ = released.recv().await;
                    "stopped".into()
                }
                path => panic!("unknown: {path}"),
            })
        })
    };
    (handlers, handler)
}

/// Returns the handler of [`held_handlers`] for a test that holds no call back.
pub fn handler() -> impl Fn(Request) -> Answer + Send + Sync + 'static {
    held_handlers().1
}

/// Returns a handler that hands upgraded streams to the test.
pub fn upgrades() -> (Receiver<Upgraded>, impl Fn(Request) -> Answer + Send + Sync + 'static) {
    let (send, upgraded) = mpsc::channel();
    let handler = move |_| -> Answer {
        let send = send.clone();
        Box::pin(async move {
            let mut response = Response::new(StatusCode::SwitchingProtocols);
            response.insert_header(UPGRADE, "x");
            let stream = response.recv_upgrade().await;
            smol::spawn(async move { send.send(stream.await.unwrap()).unwrap() }).detach();
            Ok(response)
        })
    };
    (upgraded, handler)
}

/// The head of a request that changes to the protocol of [`upgrading`].
pub const UPGRADE_HEAD: &str =
    "GET / HTTP/1.1\r\nHost: test\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n";

/// Returns a handler that changes to another protocol, which is an echo.
pub fn upgrading() -> impl Fn(Request) -> Answer + Send + Sync + 'static {
    |_| {
        Box::pin(async {
            let mut response = Response::new(StatusCode::SwitchingProtocols);
            response.insert_header(UPGRADE, "echo");
            let upgraded = response.recv_upgrade().await;
            let echo = async {
                let (reader, mut writer) = futures_lite::io::split(upgraded.await.unwrap());
                let _ = futures_lite::io::copy(reader, &mut writer).await;
                let _ = writer.close().await;
            };
            smol::spawn(echo).detach();
            Ok(response)
        })
    }
}

/// Returns a body that gives bytes for this number of reads, and then panics.
fn panicking_body(reads: usize) -> Body {
    struct Panics(usize);

    impl AsyncRead for Panics {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            assert!(self.0 > 0, "as the client wished, in the body");
            self.0 -= 1;
            buf[..5].copy_from_slice(b"begin");
            Poll::Ready(Ok(5))
        }
    }

    Body::from_reader(BufReader::new(Panics(reads)), None)
}

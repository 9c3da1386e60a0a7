//! Tests of a handler and a shutdown, over HTTP, without a socket and without a sleep. The server
//! is a mailbox. `POST /` puts a message into it, and `GET /` waits for one.
//!
//! Run with:
//!
//! ```
//! cargo test --example testing
//! ```
//!
//! The tests are at the end of this file, and need async-h1 as a client. To try the server itself,
//! run `cargo run --example testing -- 127.0.0.1:8082`, then `curl localhost:8082`, and `curl -d
//! hello localhost:8082` in another terminal.

use smol::channel::{Receiver, Sender, unbounded};
use smol_graceful::{
    Method, Outcome, Request, Response, Result, ServeError, Server, StatusCode, Token, run,
};

type Mailbox = (Sender<String>, Receiver<String>);

async fn handle(mut request: Request, (put, take): Mailbox) -> Result<Response> {
    match request.method() {
        Method::Post => {
            put.send(request.body_string().await?).await?;
            Ok(Response::new(StatusCode::Accepted))
        }
        // A client that waits at the stop is told to ask again, so that it does not hold up the
        // stop.
        Method::Get => match Token::of(&request).until_stop(take.recv()).await {
            Some(message) => Ok(message?.into()),
            None => Ok(Response::new(StatusCode::NoContent)),
        },
        _ => Ok(Response::new(StatusCode::MethodNotAllowed)),
    }
}

fn server(mailbox: Mailbox) -> Server {
    Server::new(move |request| handle(request, mailbox.clone()))
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8082".to_owned());
    run(server(unbounded()), [&*address])
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::time::Duration;

    use futures_lite::future::zip;
    use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt, stream};
    use smol::Timer;
    use smol_graceful::{Connection, DrainEnding, Listener, Shutdown};

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    const HALF_A_POST: &[u8] = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhel";

    /// A handler is a function, so a test can call it without a server.
    #[test]
    fn the_handler_alone() {
        within_reason(async {
            let (put, take) = unbounded();
            let mut post = ask(Method::Post);
            post.set_body("hello");
            let response = handle(post, (put.clone(), take.clone())).await.unwrap();
            assert_eq!(response.status(), StatusCode::Accepted);
            let mut response = handle(ask(Method::Get), (put, take)).await.unwrap();
            assert_eq!(response.body_string().await.unwrap(), "hello");
        });
    }

    /// A handler sees a shutdown by its token, which a test can put into a request.
    #[test]
    fn the_handler_sees_the_stop() {
        within_reason(async {
            let shutdown = Shutdown::new();
            let mut get = ask(Method::Get);
            get.ext_mut().insert(shutdown.token());
            shutdown.stop();
            let response = handle(get, unbounded()).await.unwrap();
            assert_eq!(response.status(), StatusCode::NoContent);
        });
    }

    /// Two clients ask over HTTP, each on its own connection.
    #[test]
    fn one_client_waits_for_another() {
        let (waiting, first) = Connection::pair();
        let (telling, second) = Connection::pair();
        let shutdown = Shutdown::new();
        let server = server(unbounded()).shutdown(&shutdown);
        let clients = async {
            let mut post = ask(Method::Post);
            post.set_body("hello");
            let get = async_h1::connect(waiting, ask(Method::Get));
            let (got, posted) = zip(get, async_h1::connect(telling, post)).await;
            assert_eq!(posted.unwrap().status(), StatusCode::Accepted);
            assert_eq!(got.unwrap().body_string().await.unwrap(), "hello");
            shutdown.stop();
        };
        let listener = Listener::from_stream(stream::iter([Ok(first), Ok(second)]));
        let (outcome, ()) = within_reason(zip(server.serve([listener]), clients));
        assert!(outcome.unwrap().is_drained());
    }

    /// A server answers a request from before the stop, even if it begins to serve only after the
    /// stop. So the test does not depend on the speed of either side.
    #[test]
    fn who_waits_at_the_stop_gets_an_answer() {
        let (mut client, connection) = Connection::pair();
        let shutdown = Shutdown::new();
        shutdown.stop();
        let server = server(unbounded()).shutdown(&shutdown);
        within_reason(async {
            client.write_all(GET).await.unwrap();
            let outcome = server.serve([only(connection)]).await.unwrap();
            assert_eq!((outcome.ending, outcome.finished), (DrainEnding::Drained, 1));
            let answer = all_of(client).await;
            assert!(answer.starts_with("HTTP/1.1 204 No Content\r\n"), "{answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
        });
    }

    /// A request that has begun at the stop is finished.
    #[test]
    fn a_message_under_way_at_the_stop_arrives() {
        let (mut client, connection) = Connection::pair();
        let (put, take) = unbounded();
        let shutdown = Shutdown::new();
        let server = server((put, take.clone())).shutdown(&shutdown);
        let client = async {
            client.write_all(HALF_A_POST).await.unwrap();
            shutdown.stop();
            client.write_all(b"lo").await.unwrap();
            all_of(client).await
        };
        let (outcome, answer) = within_reason(zip(server.serve([only(connection)]), client));
        assert!(outcome.unwrap().is_drained());
        assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "{answer}");
        assert_eq!(take.try_recv().unwrap(), "hello");
    }

    /// A request that is not finished at the end of the grace is cut, and the outcome names it.
    #[test]
    fn a_message_that_never_ends_is_cut() {
        let (mut client, connection) = Connection::pair();
        let shutdown = Shutdown::new().grace(Duration::from_millis(10));
        let server = server(unbounded()).shutdown(&shutdown);
        shutdown.stop();
        within_reason(async {
            client.write_all(HALF_A_POST).await.unwrap();
            let outcome = server.serve([only(connection)]).await.unwrap();
            assert_eq!(outcome.ending, DrainEnding::TimedOut);
            let [cut] = &*outcome.cut else { panic!("not one: {outcome}") };
            assert!(cut.to_string().contains("POST /"), "{cut}");
        });
    }

    fn ask(method: Method) -> Request {
        Request::new(method, "http://localhost/")
    }

    /// Returns a listener with one connection.
    fn only(connection: Connection) -> Listener {
        Listener::from_stream(stream::once(Ok(connection)))
    }

    /// Returns all text until the server closes the connection.
    async fn all_of(mut client: Connection) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Runs a test with a time limit, so that it fails instead of hanging.
    fn within_reason<T>(test: impl Future<Output = T>) -> T {
        let late = async {
            Timer::after(Duration::from_secs(30)).await;
            panic!("the test hangs")
        };
        smol::block_on(test.or(late))
    }
}

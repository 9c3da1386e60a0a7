//! [`Server::local`]: a server whose handlers stay on one thread.
//!
//! Invariant: a handler is called, polled and dropped only on the thread that polls the program's
//! `LocalExecutor`. The server itself may run on other threads. It sends each request to that
//! thread, and gets back a task, which it awaits and drops like a handler.

use std::future::Future;
use std::rc::Rc;

use http_types::{Error, Request, Response, StatusCode};
use smol::channel::{self, Receiver, Sender};
use smol::{LocalExecutor, Task};

use crate::server::Server;

/// A request on its way to the thread of its handler.
struct Call {
    request: Request,
    /// Takes the task of the handler back to the server.
    handling: Sender<Task<http_types::Result<Response>>>,
}

impl Server {
    /// Makes a server of a handler that need not be `Send`, because it runs on the thread that
    /// polls `executor`.
    ///
    /// The handler may hold an `Rc`, a `RefCell` or a connection to a database that cannot leave
    /// its thread. Everything else is as with [`Server::new`]. The server itself may be polled
    /// anywhere, but a request is answered only while the program polls `executor`. If `executor`
    /// is dropped before the server has ended, clients get a 503.
    ///
    /// While a handler blocks, all other handlers wait, because they share a thread. The server's
    /// deadlines wait, too, if the same thread polls the server.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::stream;
    /// use smol_graceful::{Connection, Listener, Method, Request, Server, Url};
    /// use std::cell::Cell;
    /// use std::rc::Rc;
    ///
    /// # fn main() -> smol_graceful::Result<()> {
    /// let executor = smol::LocalExecutor::new();
    /// let count = Rc::new(Cell::new(0));
    /// let server = Server::local(&executor, move |_request| {
    ///     let count = count.clone();
    ///     async move {
    ///         count.set(count.get() + 1);
    ///         Ok(format!("request {}", count.get()))
    ///     }
    /// });
    ///
    /// let (client, connection) = Connection::pair();
    /// let listener = Listener::from_stream(stream::once(Ok(connection)));
    /// let _serving = executor.spawn(server.serve([listener]));
    /// smol::block_on(executor.run(async {
    ///     let request = Request::new(Method::Get, Url::parse("http://localhost/")?);
    ///     let mut response = async_h1::connect(client, request).await?;
    ///     assert_eq!(response.body_string().await?, "request 1");
    ///     Ok(())
    /// }))
    /// # }
    /// ```
    pub fn local<'a, H, F, R>(executor: &LocalExecutor<'a>, handler: H) -> Self
    where
        H: Fn(Request) -> F + 'a,
        F: Future<Output = http_types::Result<R>> + 'a,
        R: Into<Response> + 'a,
    {
        let (calls, called) = channel::unbounded();
        executor.spawn(answer(WaitingCalls(called), handler)).detach();
        Self::new(move |request| call(calls.clone(), request))
    }
}

/// The requests that wait for their handler. The drop drops these requests, so that no client waits
/// in vain. The channel itself would keep them as long as the server has the other end.
struct WaitingCalls(Receiver<Call>);

impl Drop for WaitingCalls {
    fn drop(&mut self) {
        self.0.close();
        while self.0.try_recv().is_ok() {}
    }
}

/// Calls the handler for each request until the server has ended. The handlers run inside this
/// future, because [`Server::local`] borrows the program's executor only for a moment.
async fn answer<'a, H, F, R>(calls: WaitingCalls, handler: H)
where
    H: Fn(Request) -> F + 'a,
    F: Future<Output = http_types::Result<R>> + 'a,
    R: Into<Response> + 'a,
{
    let handlers = LocalExecutor::new();
    let handler = Rc::new(handler);
    let call = async {
        while let Ok(Call { request, handling }) = calls.0.recv().await {
            let handler = handler.clone();
            // The handler is called in its task, which passes a panic on.
            let task = handlers.spawn(async move { handler(request).await.map(Into::into) });
            // If the connection has ended meanwhile, the send drops the task, which cancels it.
            let _ = handling.try_send(task);
        }
    };
    handlers.run(call).await;
}

/// Lets the other thread handle `request`, and returns its response. The drop of this future
/// cancels the handler.
///
/// # Errors
///
/// Returns the handler's error, or 503 if its executor is gone.
async fn call(calls: Sender<Call>, request: Request) -> http_types::Result<Response> {
    let (handling, handled) = channel::bounded(1);
    calls.try_send(Call { request, handling }).map_err(|_| gone())?;
    let task = handled.recv().await.map_err(|_| gone())?;
    task.fallible().await.ok_or_else(gone)?
}

fn gone() -> Error {
    let text = "the LocalExecutor of the handler was dropped before the server has ended";
    Error::from_str(StatusCode::ServiceUnavailable, text)
}

//! [`BodyError`]: the fault of a client in the body of its request.
//!
//! Invariant: each read of a body that fails through the client's fault returns an [`io::Error`]
//! that holds a [`BodyError`], the first read and every later one. Knows nothing of reading, and
//! does not decide which response the client gets.

use std::error::Error;
use std::fmt;
use std::io;

use http_types::StatusCode;

use super::body::Malformed;

/// The client's fault in the body of its request, and the status with which a program should
/// answer.
///
/// Every way to read a request's body returns such an error inside another one: an [`io::Error`],
/// or an `http_types::Error` of http-types' own methods. [`BodyError::find`] finds it there. A
/// program that makes a response of each error itself gets the status from here. If it answers 5xx
/// or 422 instead, as http-types' own methods would, the server sends the status of the body's
/// error in its place (rule W16).
///
/// | what is wrong | status | the [`io::ErrorKind`] |
/// |---|---|---|
/// | the chunks or the trailers are malformed | 400 | `InvalidData` |
/// | the client has closed its side before the body's end | 400 | `UnexpectedEof` |
/// | no byte has come for [`Limits::stall_timeout`] | 408 | `TimedOut` |
/// | the body comes more slowly than [`Limits::body_rate`] | 408 | `TimedOut` |
/// | the body is longer than [`Limits::body_bytes`] | 413 | `FileTooLarge` |
///
/// [`Limits::stall_timeout`]: crate::Limits::stall_timeout
/// [`Limits::body_rate`]: crate::Limits::body_rate
/// [`Limits::body_bytes`]: crate::Limits::body_bytes
///
/// # Examples
///
/// A program that has an error type of its own:
///
/// ```
/// use futures_lite::AsyncReadExt;
/// use smol_graceful::{BodyError, Request, Response, Server, StatusCode};
/// use std::io;
///
/// enum AppError {
///     Io(io::Error),
/// }
///
/// impl AppError {
///     fn status(&self) -> StatusCode {
///         let Self::Io(error) = self;
///         BodyError::find(error).map_or(StatusCode::InternalServerError, BodyError::status)
///     }
/// }
///
/// async fn count(mut request: Request) -> Result<Response, AppError> {
///     let mut body = Vec::new();
///     request.read_to_end(&mut body).await.map_err(AppError::Io)?;
///     Ok(format!("{} bytes\n", body.len()).into())
/// }
///
/// let server = Server::new(|request| async {
///     Ok(count(request).await.unwrap_or_else(|error| Response::new(error.status())))
/// });
/// # drop(server);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyError(Fault);

/// The client's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Malformed(Malformed),
    CutShort,
    TooSlow,
    TooLong,
}

impl BodyError {
    /// The client has closed its side, or its stream is broken, before the body's end (rule W6).
    pub(super) const CUT_SHORT: Self = Self(Fault::CutShort);
    /// The body has not come in time (rule S25).
    pub(super) const TOO_SLOW: Self = Self(Fault::TooSlow);
    /// The body is longer than allowed.
    pub(super) const TOO_LONG: Self = Self(Fault::TooLong);

    /// Returns the body's error that has caused `error`. Returns `None` if something else has, for
    /// example a file that the handler reads.
    ///
    /// Looks at `error`, at what an [`io::Error`] holds, and at every
    /// [`source`](std::error::Error::source) below. For an `http_types::Error`, an `anyhow::Error`
    /// or a `Box<dyn Error>` pass the error inside it: `error.as_ref()`.
    ///
    /// # Examples
    ///
    /// A handler that answers the fault with its status, and every other error with a status of its
    /// own choice:
    ///
    /// ```
    /// use smol_graceful::{BodyError, Request, Response, StatusCode, http_types};
    ///
    /// async fn handler(mut request: Request) -> http_types::Result<Response> {
    ///     Ok(match request.body_string().await {
    ///         Ok(text) => format!("{} characters\n", text.chars().count()).into(),
    ///         Err(error) => {
    ///             let fault = BodyError::find(error.as_ref());
    ///             Response::new(fault.map_or(StatusCode::BadRequest, BodyError::status))
    ///         }
    ///     })
    /// }
    ///
    /// # fn main() -> http_types::Result<()> {
    /// use smol_graceful::Method;
    /// // No client has got this body wrong: it is not UTF-8, which is the program's own affair.
    /// let mut request = Request::new(Method::Post, "http://localhost/");
    /// request.set_body(&b"\xff"[..]);
    /// let response = futures_lite::future::block_on(handler(request))?;
    /// assert_eq!(response.status(), StatusCode::BadRequest);
    /// # Ok(())
    /// # }
    /// ```
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref::<Self>() {
                return Some(*fault);
            }
            // `io::Error::source` skips the error that the `io::Error` holds, so this code looks at
            // the held error itself.
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(held) => Some(held),
                None => error.source(),
            };
        }
        None
    }

    /// Returns the status for the client: 400, 408 or 413.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::{AsyncReadExt, AsyncWriteExt, stream};
    /// use smol_graceful::{BodyError, Connection, Listener, Server, StatusCode};
    /// use std::sync::mpsc;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let (report, reports) = mpsc::channel();
    /// let server = Server::new(move |mut request| {
    ///     let report = report.clone();
    ///     async move {
    ///         let error = request.read_to_end(&mut Vec::new()).await.unwrap_err();
    ///         report.send(BodyError::find(&error).map(BodyError::status))?;
    ///         Ok("too late")
    ///     }
    /// });
    ///
    /// let (mut client, connection) = Connection::pair();
    /// let serve = server.serve([Listener::from_stream(stream::once(Ok(connection)))]);
    /// let upload = async {
    ///     let head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    ///     client.write_all(head).await?;
    ///     client.write_all(b"no chunk").await?;
    ///     client.read_to_end(&mut Vec::new()).await
    /// };
    /// let served = async { unreachable!("{:?}", serve.await) };
    /// smol::block_on(futures_lite::future::or(upload, served))?;
    /// assert_eq!(reports.recv().unwrap(), Some(StatusCode::BadRequest));
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(self) -> StatusCode {
        match self.0 {
            Fault::Malformed(_) | Fault::CutShort => StatusCode::BadRequest,
            Fault::TooSlow => StatusCode::RequestTimeout,
            Fault::TooLong => StatusCode::PayloadTooLarge,
        }
    }

    fn kind(self) -> io::ErrorKind {
        match self.0 {
            Fault::Malformed(_) => io::ErrorKind::InvalidData,
            Fault::CutShort => io::ErrorKind::UnexpectedEof,
            Fault::TooSlow => io::ErrorKind::TimedOut,
            Fault::TooLong => io::ErrorKind::FileTooLarge,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Fault::Malformed(malformed) => {
                write!(f, "the request's body is malformed: {malformed}")
            }
            Fault::CutShort => f.write_str("the client has cut the request's body short"),
            Fault::TooSlow => f.write_str("the request's body has not come in time"),
            Fault::TooLong => f.write_str("the request's body is longer than allowed"),
        }
    }
}

impl Error for BodyError {}

impl From<Malformed> for BodyError {
    fn from(malformed: Malformed) -> Self {
        Self(Fault::Malformed(malformed))
    }
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// The reason why the rest of a body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The client has got the body wrong.
    Wrong(BodyError),
    /// The stream has failed, or the request is over.
    Failed(io::ErrorKind),
}

impl Lost {
    /// Sorts the error of a read.
    pub(super) fn by(error: &io::Error) -> Self {
        BodyError::find(error).map_or(Self::Failed(error.kind()), Self::Wrong)
    }

    /// Makes the error of a further read.
    pub(super) fn error(self) -> io::Error {
        match self {
            Self::Wrong(wrong) => wrong.into(),
            Self::Failed(kind) => kind.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(Box<dyn Error + Send + Sync>);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    /// The error is found however deep a program has wrapped it.
    #[test]
    fn it_is_found_in_every_wrapping() {
        let wrong = BodyError::TOO_LONG;
        let plain = || io::Error::from(wrong);
        assert_eq!(BodyError::find(&wrong), Some(wrong));
        assert_eq!(BodyError::find(&plain()), Some(wrong));
        assert_eq!(BodyError::find(&Wrapped(Box::new(plain()))), Some(wrong));
        assert_eq!(BodyError::find(&io::Error::other(plain())), Some(wrong));
        let deep = io::Error::other(Wrapped(Box::new(io::Error::other(Wrapped(plain().into())))));
        assert_eq!(BodyError::find(&deep), Some(wrong));

        let of_http_types = http_types::Error::new(422, plain());
        assert_eq!(BodyError::find(of_http_types.as_ref()), Some(wrong));
        let of_anyhow = of_http_types.into_inner();
        assert_eq!(BodyError::find(of_anyhow.as_ref()), Some(wrong));
        let with_context = of_anyhow.context("while reading").context("in the handler");
        assert_eq!(BodyError::find(with_context.as_ref()), Some(wrong));
        let boxed: Box<dyn Error + Send + Sync> = with_context.into();
        assert_eq!(BodyError::find(boxed.as_ref()), Some(wrong));
    }

    /// A file that ends too early is not the client's fault.
    #[test]
    fn another_error_is_not_the_bodys() {
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData] {
            assert_eq!(BodyError::find(&io::Error::from(kind)), None);
            assert_eq!(BodyError::find(&io::Error::new(kind, "a file")), None);
        }
        assert_eq!(BodyError::find(http_types::Error::from_str(500, "no").as_ref()), None);
    }

    #[test]
    fn an_error_says_what_was_wrong() {
        let error = io::Error::from(BodyError::from(Malformed::SIZE));
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let text = "the request's body is malformed: chunk size is not a number";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_further_read_fails_like_the_first() {
        let malformed = BodyError::from(Malformed::SIZE);
        let all = [malformed, BodyError::CUT_SHORT, BodyError::TOO_SLOW, BodyError::TOO_LONG];
        for (wrong, status) in all.into_iter().zip([400, 400, 408, 413]) {
            let first = io::Error::from(wrong);
            let further = Lost::by(&first).error();
            assert_eq!((first.kind(), BodyError::find(&first)), (further.kind(), Some(wrong)));
            assert_eq!((BodyError::find(&further), wrong.status() as u16), (Some(wrong), status));
        }
    }
}

//! A small but whole service, as a beginning for your own. Clients order a report, watch the number
//! of waiting orders, and fetch the report. Each accepted order is done before the process ends.
//!
//! Run with:
//!
//! ```
//! cargo run --example service -- /tmp/reports 127.0.0.1:8082 127.0.0.1:8083
//! ```
//!
//! Try `curl -d '{"name": "numbers", "rows": 1000}' localhost:8082/reports`, `curl -r -10
//! localhost:8082/reports/numbers`, `curl -N localhost:8082/events`, `curl localhost:8083/metrics`.

use std::{env, fs, io, panic, path::PathBuf, process, sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, family::Family};
use prometheus_client::{encoding::prometheus_text::encode, registry::Registry};
use smol::channel::{Receiver, Sender, bounded};
use smol::{Timer, Unblock, future::FutureExt, io::AsyncReadExt, io::BufReader, stream, unblock};
use smol_graceful::{
    Body, Error, Guard, Limits, LogWriter, Outcome, Process, Request, Response, Result, ServeError,
    Server, Shutdown, Token, mime, probe_for, stream_body,
};

#[derive(serde::Deserialize)]
struct Order {
    name: String,
    rows: u16,
}

/// The file and the number of rows of a report. The drain waits for the guard of each job.
type Job = (PathBuf, u16, Guard);

/// The state that all handlers share.
struct Service {
    directory: PathBuf,
    /// The name and the methods of each route. matchit is the router of axum, and refuses routes in
    /// conflict.
    routes: matchit::Router<(&'static str, &'static str)>,
    queue: Sender<Job>,
}

impl Service {
    fn new(directory: PathBuf) -> io::Result<(Arc<Self>, Receiver<Job>)> {
        fs::create_dir_all(&directory)?;
        let mut routes = matchit::Router::new();
        for route in [("/reports", "POST"), ("/reports/{name}", "GET, HEAD"), ("/events", "GET")] {
            routes.insert(route.0, route).map_err(io::Error::other)?;
        }
        let (queue, jobs) = bounded(100);
        Ok((Arc::new(Self { directory, routes, queue }), jobs))
    }

    /// Answers within five seconds. An error becomes a response with its status, and its text as
    /// JSON.
    async fn handle(self: Arc<Self>, request: Request) -> Result {
        let path = request.url().path().to_owned();
        let (route, methods) = self.routes.at(&path).map_or(("none", ""), |found| *found.value);
        let answer = async {
            match (route, request.method().as_ref()) {
                ("/reports", "POST") => self.order(request).await,
                ("/reports/{name}", "GET" | "HEAD") => self.fetch(&request).await,
                ("/events", "GET") => Ok(self.clone().events(&request)),
                ("none", _) => Err(Error::from_str(404, "no such route")),
                _ => Ok(reply(405, "allow", methods, "")),
            }
        };
        let late = async {
            Timer::after(Duration::from_secs(5)).await;
            Err(Error::from_str(503, "this has taken too long"))
        };
        let mut response = answer.or(late).await.unwrap_or_else(|error| {
            let text = serde_json::json!({ "error": error.to_string() });
            reply(error.status() as u16, "cache-control", "no-store", text)
        });
        response.ext_mut().insert(route); // for the observer
        Ok(response)
    }

    /// Returns a report's file. No name leads out of the directory, because a `/` or a `.` is
    /// refused.
    fn path(&self, name: &str) -> Result<PathBuf> {
        let ok = (1..=100).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
        ok.then(|| self.directory.join(name)).ok_or_else(|| Error::from_str(400, "not a name"))
    }

    /// Accepts a job, which is done even if the stop begins at once.
    async fn order(&self, mut request: Request) -> Result {
        let Order { name, rows } = request.body_json().await?;
        match self.queue.try_send((self.path(&name)?, rows, Token::of(&request).guard()?)) {
            Ok(()) => Ok(reply(202, "location", &format!("/reports/{name}"), "")),
            Err(_) => Err(Error::from_str(503, "too many orders")),
        }
    }

    /// Streams a report, or the part of it that the client asks for (RFC 9110 section 14).
    async fn fetch(&self, request: &Request) -> Result {
        let path = self.path(request.url().path().trim_start_matches("/reports/"))?;
        let mut file = unblock(|| fs::File::open(path)).await.map_err(|e| Error::new(404, e))?;
        let length = file.metadata()?.len();
        let field = request.header("range").filter(|_| request.method().as_ref() == "GET");
        let parts = field.and_then(|f| http_range_header::parse_range_header(f.as_str()).ok());
        let (status, name, value, (start, end)) = match parts.map(|parts| parts.validate(length)) {
            Some(Ok(parts)) if parts.len() == 1 => {
                let (first, last) = parts[0].clone().into_inner();
                (206, "content-range", format!("bytes {first}-{last}/{length}"), (first, last + 1))
            }
            Some(Err(_)) => (416, "content-range", format!("bytes */{length}"), (0, 0)),
            _ => (200, "accept-ranges", "bytes".to_owned(), (0, length)),
        };
        io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
        let file = BufReader::new(Unblock::with_capacity(65_536, file)).take(end - start);
        let mut body = Body::from_reader(file, usize::try_from(end - start).ok());
        body.set_mime(mime::PLAIN);
        Ok(reply(status, name, &value, body))
    }

    /// Sends server-sent events until the stop begins.
    fn events(self: Arc<Self>, request: &Request) -> Response {
        let events = stream::unfold((self, Token::of(request)), |(service, token)| async {
            token.until_stop(Timer::after(Duration::from_secs(1))).await?;
            Some((Ok(format!("data: {} orders wait\n\n", service.queue.len())), (service, token)))
        });
        reply(200, "content-type", "text/event-stream", stream_body(events))
    }
}

fn reply(status: u16, name: &str, value: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(status);
    response.insert_header(name, value);
    response.set_body(body);
    response
}

/// Does one job after the other.
async fn work(jobs: Receiver<Job>) {
    while let Ok((path, rows, _guard)) = jobs.recv().await {
        let write = unblock(move || {
            let new = path.with_extension(process::id().to_string());
            let text: String = (1..=rows).map(|row| format!("row {row}\n")).collect();
            let written = fs::write(&new, text).and_then(|()| fs::rename(new, &path));
            log::info!("{}: {written:?}", path.display());
        });
        let _ = panic::AssertUnwindSafe(write).catch_unwind().await; // A panic ends this job alone.
    }
}

fn main() -> Result<Outcome, ServeError> {
    let writer = LogWriter::new(io::stderr())?; // No thread waits for the log.
    let target = env_logger::Target::Pipe(Box::new(writer.clone()));
    env_logger::Builder::new().parse_filters("info").target(target).init();
    let mut args = env::args().skip(1);
    let mut argument = |default: &str| args.next().unwrap_or(default.to_owned());
    let (service, jobs) = Service::new(argument("reports").into())?;
    smol::spawn(work(jobs)).detach();
    let requests = Family::<Vec<(&str, String)>, Counter>::default();
    let mut registry = Registry::default();
    registry.register("http_requests", "Requests that are over", requests.clone());
    let shutdown = Shutdown::new();
    let server = Server::new(move |request| service.clone().handle(request))
        .limits(Limits::default().body_bytes(64 * 1024))
        .shutdown(&shutdown)
        .observe(move |seen| {
            let status = seen.status().map_or("none".to_owned(), |status| status.to_string());
            let route = seen.extension::<&str>().copied().unwrap_or("none").to_owned();
            let (peer, request) = (seen.peer(), format!("{} {}", seen.method(), seen.target()));
            log::info!("{peer} {request:?} {status} {:?} {}", seen.took(), seen.ending());
            requests.get_or_create(&vec![("route", route), ("status", status)]).inc();
        });
    let admin = Server::new(move |request| {
        let mut text = String::new();
        let metrics = encode(&mut text, &registry).map(|()| Response::from(text));
        let response = probe_for(&shutdown.token(), &request).map_or(metrics, Ok);
        async { Ok(response?) }
    });
    let (address, admin_address) = (argument("127.0.0.1:8082"), argument("127.0.0.1:8083"));
    let outcome = Process::default().admin(admin, [admin_address]).run(server, [address]);
    drop(writer); // The drop waits up to 1 s for the last lines.
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handler is a function, so its test needs neither a server nor a socket.
    #[test]
    fn a_report_is_ordered_written_and_fetched() -> Result<()> {
        let (service, jobs) = Service::new(env::temp_dir().join(format!("sg-{}", process::id())))?;
        let mut order = Request::post("http://test/reports");
        order.set_body(r#"{"name": "few", "rows": 9}"#);
        let mut last = Request::get("http://test/reports/few");
        last.insert_header("range", "bytes=-6");
        assert!(service.path("../etc/passwd").is_err());
        smol::block_on(async {
            assert_eq!(service.clone().handle(order).await?.status(), 202);
            jobs.close();
            work(jobs).await; // The worker ends when there are no more jobs.
            let mut last = service.clone().handle(last).await?;
            assert_eq!((last.status() as u16, &*last.body_string().await?), (206, "row 9\n"));
            Ok(fs::remove_dir_all(&service.directory)?)
        })
    }
}

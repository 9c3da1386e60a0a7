//! actix-web 4, which handles TERM by itself.

use std::io;

use actix_web::body::SizedStream;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{self, Bytes, Payload};
use actix_web::{App, Either, HttpRequest, HttpResponse, HttpServer, rt};
use futures_lite::StreamExt;

fn main() -> io::Result<()> {
    let server = HttpServer::new(|| {
        App::new()
            .route("/", web::get().to(async || "okay"))
            .route("/echo", web::post().to(echo))
            .route("/upload", web::post().to(upload))
            .route("/download", web::get().to(async || Bytes::from_static(peers::download())))
    })
    .workers(peers::threads())
    .bind(peers::address())?;
    rt::System::new().block_on(server.run())
}

async fn echo(request: HttpRequest, payload: Payload) -> HttpResponse {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|text| text.to_str().ok());
    match length.and_then(|text| text.parse().ok()) {
        Some(length) => HttpResponse::Ok().body(SizedStream::new(length, payload)),
        None => HttpResponse::Ok().streaming(payload),
    }
}

async fn upload(mut payload: Payload) -> Either<String, HttpResponse> {
    let mut count = 0;
    while let Some(piece) = payload.next().await {
        match piece {
            Ok(piece) => count += piece.len(),
            Err(_) => return Either::Right(HttpResponse::BadRequest().finish()),
        }
    }
    Either::Left(count.to_string())
}

//! Serves the browser package to browsers of this machine.

use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::web::web;

/// Serves the package's folder until it is ended.
pub fn serve(port: Option<&str>) -> Result<(), String> {
    let address = format!("127.0.0.1:{}", port.unwrap_or("8000"));
    let listener = TcpListener::bind(&address)
        .map_err(|e| format!("{address}: {e} (another port: cargo xtask serve PORT)"))?;
    println!("http://{address}/demo/ and, after npm ci in web/bench, http://{address}/bench/page/");
    each_connection(&listener);
    Ok(())
}

/// A thread a connection and a request a connection: browsers hold several open, and none may wait for another.
fn each_connection(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            // A connection that the browser drops is its own matter.
            let _ = answer(&stream);
        });
    }
}

/// What lies at an address.
#[derive(Debug, PartialEq)]
enum Found {
    /// The address of a page.
    Elsewhere(String),
    /// A file, and its type.
    File(PathBuf, &'static str),
    Nothing,
}

/// One request: a file of the package's folder.
fn answer(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream.take(1 << 16)).lines();
    let line = lines.next().transpose()?.unwrap_or_default();
    // To the end of its head: a connection that is closed with something unread is reset.
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = line.split(' ');
    let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, header, body) = match (method, find(url)) {
        ("GET" | "HEAD", Found::Elsewhere(page)) => {
            ("302 Found", format!("Location: {page}"), Vec::new())
        }
        ("GET" | "HEAD", Found::File(path, kind)) => {
            ("200 OK", format!("Content-Type: {kind}"), fs::read(path)?)
        }
        ("GET" | "HEAD", Found::Nothing) => {
            ("404 Not Found", "Content-Type: text/plain".to_owned(), Vec::new())
        }
        _ => ("405 Method Not Allowed", "Allow: GET, HEAD".to_owned(), Vec::new()),
    };
    let length = body.len();
    let mut to = BufWriter::new(stream);
    write!(
        to,
        "HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    if method == "GET" {
        to.write_all(&body)?;
    }
    to.flush()
}

fn find(url: &str) -> Found {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let mut path = path.trim_start_matches('/').to_owned();
    // Nothing above the folder, nor on another drive.
    if !Path::new(&path).components().all(|part| matches!(part, Component::Normal(_))) {
        return Found::Nothing;
    }
    // What a page names lies beside it, so folders end with a slash.
    if path.is_empty() {
        return Found::Elsewhere("/demo/".to_owned());
    }
    if !path.ends_with('/') && web(&path).is_dir() {
        return Found::Elsewhere(format!("/{path}/"));
    }
    if path.ends_with('/') {
        path.push_str("index.html");
    }
    let kind = match Path::new(&path).extension().and_then(|e| e.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript",
        Some("css") => "text/css",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("txt") => "text/plain; charset=utf-8",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    };
    let file = web(&path);
    if file.is_file() { Found::File(file, kind) } else { Found::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_where() {
        let elsewhere = |page: &str| Found::Elsewhere(page.to_owned());
        let file = |path, kind| Found::File(web(path), kind);
        for (url, expected) in [
            ("/", elsewhere("/demo/")),
            ("/?x=1", elsewhere("/demo/")),
            ("/demo", elsewhere("/demo/")),
            ("/demo/?x#y", file("demo/index.html", "text/html; charset=utf-8")),
            ("/js/index.js", file("js/index.js", "text/javascript")),
            ("/package.json", file("package.json", "application/json")),
            ("/js/", Found::Nothing),
            ("/none.js", Found::Nothing),
            ("/../Cargo.toml", Found::Nothing),
            ("/js/../../Cargo.toml", Found::Nothing),
            ("//etc/passwd", Found::Nothing),
        ] {
            assert_eq!(find(url), expected, "{url}");
        }
    }

    /// Browsers open several connections, keep them, and ask through each.
    #[test]
    fn no_connection_waits_for_another() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || each_connection(&listener));
        let mut all: Vec<_> = (0..12).map(|_| TcpStream::connect(address).unwrap()).collect();
        // The first says nothing for now.
        for stream in all.iter_mut().rev() {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(b"GET /package.json HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(
                text.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"),
                "{text}"
            );
            assert!(text.ends_with(&fs::read_to_string(web("package.json")).unwrap()));
        }
        for (request, status) in [
            ("HEAD /demo HTTP/1.1", "302"),
            ("GET /none HTTP/1.1", "404"),
            ("POST / HTTP/1.1", "405"),
            ("", "405"),
        ] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(format!("{request}\r\n\r\n").as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {text}");
        }
    }
}

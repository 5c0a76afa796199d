//! The browser package: compiled to WebAssembly, bound, tested and timed in headless Chromium, served.

use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::cross;
use crate::parts::{cargo, need, root, run_in, which};

/// What the package is compiled for.
pub const TRIPLE: &str = "wasm32-unknown-unknown";

/// Builds the package's generated half, `web/dist`, and puts the licences beside it.
pub fn build() -> Result<(), String> {
    let mut args =
        vec!["build", "--profile", "web", "-p", "local-attention-web", "--target", TRIPLE];
    let rustup = cross::rustup_has(TRIPLE);
    // Messages of panics hold paths: not those of who built it.
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME")).unwrap_or_default();
    // Flags end at spaces.
    let remap = match home.is_empty() || home.contains(' ') {
        true => String::new(),
        false => format!(" --remap-path-prefix={home}="),
    };
    let flags = format!("-Ctarget-feature=+simd128{remap}");
    let mut env = vec![("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", flags.as_str())];
    if !rustup {
        cross::debian_toolchain()?;
        args.push("-Zbuild-std=std,panic_abort");
        env.push(("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld"));
    }
    cross::cargo(rustup, &args, &env)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let module = root().join(target).join(TRIPLE).join("web/local_attention_web.wasm");
    cargo(&["run", "-q", "-p", "bindgen", "--", &text(module)?, &text(web("dist"))?], &[])?;
    // What the page shows attention on.
    let genesis = root().join("examples/char_model/genesis.txt");
    fs::copy(&genesis, web("dist/text.txt")).map_err(|e| format!("{}: {e}", genesis.display()))?;
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(root().join(name), web(name)).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// Builds the package and runs its tests.
pub fn test() -> Result<(), String> {
    prepare()?;
    let args = ["--test", "--test-reporter=spec", "test/index.mjs"];
    run_in(&web(""), "node", &args, &[])
}

/// Builds the package and times it against onnxruntime-web.
pub fn bench(args: &[String]) -> Result<(), String> {
    prepare()?;
    install("bench")?;
    // Where files are named from.
    let script = text(web("bench/index.mjs"))?;
    let args: Vec<&str> =
        [script.as_str()].into_iter().chain(args.iter().map(String::as_str)).collect();
    run_in(Path::new("."), "node", &args, &[])
}

/// The package, and what its tests need.
fn prepare() -> Result<(), String> {
    // The variable names another one.
    let chromium = || std::env::var_os("CHROMIUM").is_some() || which("chromium");
    need("Chromium", &chromium, "chromium")?;
    need("Node", &|| which("node"), "nodejs")?;
    need("npm", &|| which("npm"), "npm")?;
    build()?;
    install("")
}

/// Installs what a folder of the package locks: once, until that changes.
fn install(folder: &str) -> Result<(), String> {
    let folder = web(folder);
    let changed = |name: &str| fs::metadata(folder.join(name)).and_then(|m| m.modified()).ok();
    if changed("node_modules/.package-lock.json") < changed("package-lock.json") {
        let args = ["ci", "--no-audit", "--no-fund", "--prefer-offline"];
        run_in(&folder, "npm", &args, &[])?;
    }
    Ok(())
}

/// Clippy on what is only compiled for browsers, where rustup has the target.
pub fn lint() -> Result<(), String> {
    if !cross::rustup_has(TRIPLE) {
        println!("not linted for browsers: rustup target add {TRIPLE}");
        return Ok(());
    }
    let args = ["clippy", "-p", "local-attention-web", "--target", TRIPLE, "--", "-D", "warnings"];
    let flags = ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", "-Ctarget-feature=+simd128");
    cargo(&args, &[flags])
}

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
    for stream in listener.incoming().map_while(Result::ok) {
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
        ("GET" | "HEAD", Found::Nothing) => ("404 Not Found", NOTHING.to_owned(), Vec::new()),
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

/// A header of what is not there.
const NOTHING: &str = "Content-Type: text/plain";

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

fn text(path: PathBuf) -> Result<String, String> {
    path.to_str().map(str::to_owned).ok_or_else(|| "a path that is no text".to_owned())
}

fn web(path: &str) -> PathBuf {
    root().join("web").join(path)
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

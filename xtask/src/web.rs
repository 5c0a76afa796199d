//! The GPU engine in a browser: compiled to WebAssembly, served from here, run by headless Chromium on
//! SwiftShader's WebGPU.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cross;
use crate::parts::{cargo, need, root, which};

const TRIPLE: &str = "wasm32-unknown-unknown";
const PATIENCE: Duration = Duration::from_secs(600);

/// Builds the smoke test, runs it and takes its result.
pub fn test() -> Result<(), String> {
    need("Chromium", &|| which("chromium"), "chromium")?;
    let mut args = vec!["build", "--release", "-p", "local-attention-smoke", "--target", TRIPLE];
    let rustup = cross::rustup_has(TRIPLE);
    let mut env = Vec::new();
    if !rustup {
        cross::debian_toolchain()?;
        args.push("-Zbuild-std=std,panic_abort");
        env.push(("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld"));
    }
    cross::cargo(rustup, &args, &env)?;
    let target = root().join("target");
    let module = target.join(TRIPLE).join("release/local_attention_smoke.wasm");
    let folder = target.join("web");
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or("a path that is no text");
    cargo(&["run", "-p", "bindgen", "--", &text(&module)?, &text(&folder)?], &[])?;
    let page = root().join("web/smoke/index.html");
    let put = |e: std::io::Error| format!("{}: {e}", folder.display());
    std::fs::copy(page, folder.join("index.html")).map_err(put)?;

    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no port: {e}"))?;
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    let profile = folder.join("profile");
    // Of a run that was killed.
    let _ = std::fs::remove_dir_all(&profile);
    let log = std::fs::File::create(folder.join("chromium.log")).map_err(put)?;
    let mut browser = Command::new("chromium")
        .args([
            "--headless",
            "--enable-logging=stderr",
            "--no-sandbox",
            "--enable-unsafe-webgpu",
            "--use-webgpu-adapter=swiftshader",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={}", text(&profile)?),
            &format!("http://127.0.0.1:{port}/index.html"),
        ])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| format!("chromium: {e}"))?;
    let result = serve(&listener, &folder, &mut browser);
    let _ = browser.kill();
    let _ = browser.wait();
    let _ = std::fs::remove_dir_all(profile);
    let result = result?;
    match result.split_once('\n') {
        Some(("ok", lines)) => {
            println!("{lines}");
            Ok(())
        }
        _ => Err(format!("in the browser it {result}")),
    }
}

/// Answers requests until the page posts its result.
fn serve(listener: &TcpListener, folder: &Path, browser: &mut Child) -> Result<String, String> {
    listener.set_nonblocking(true).map_err(|e| e.to_string())?;
    let log = folder.join("chromium.log");
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match listener.accept() {
            Ok((stream, _)) => {
                // A connection that the browser drops is its own matter.
                if let Ok(Some(result)) = answer(stream, folder) {
                    return Ok(result);
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
        if let Ok(Some(status)) = browser.try_wait() {
            return Err(format!("Chromium ended with {status}: see {}", log.display()));
        }
    }
    Err(format!("no result after {} s: see {}", PATIENCE.as_secs(), log.display()))
}

/// One request: a file of the folder, or the result.
fn answer(stream: TcpStream, folder: &Path) -> std::io::Result<Option<String>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(&stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let mut stream = &stream;
    if method == Some("POST") {
        let mut body = String::new();
        reader.take(length).read_to_string(&mut body)?;
        stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")?;
        return Ok(Some(body));
    }
    let name = path.trim_start_matches('/');
    // Only files that lie in the folder itself.
    let data =
        if name.contains(['/', '\\']) { None } else { std::fs::read(folder.join(name)).ok() };
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html",
        Some("js") => "text/javascript",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    };
    let status = if data.is_some() { "200 OK" } else { "404 Not Found" };
    let data = data.unwrap_or_default();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        data.len()
    )?;
    stream.write_all(&data)?;
    Ok(None)
}

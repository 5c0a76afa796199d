//! The GPU engine in a browser: compiled to WebAssembly, served from here, run by headless Chromium on
//! SwiftShader's WebGPU.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tiny_http::{Header, Method, Request, Response, Server};

use crate::cross;
use crate::parts::{cargo, need, root, which};

const TRIPLE: &str = "wasm32-unknown-unknown";
const PATIENCE: Duration = Duration::from_secs(1200);

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

    let server = Server::http("127.0.0.1:0").map_err(|e| format!("no port: {e}"))?;
    let address = server.server_addr();
    let profile = folder.join("profile");
    // Of a run that was killed.
    let _ = std::fs::remove_dir_all(&profile);
    let log = File::create(folder.join("chromium.log")).map_err(put)?;
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
            &format!("http://{address}/index.html"),
        ])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| format!("chromium: {e}"))?;
    let result = serve(&server, &folder, &mut browser);
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
fn serve(server: &Server, folder: &Path, browser: &mut Child) -> Result<String, String> {
    let log = folder.join("chromium.log");
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let request = server.recv_timeout(Duration::from_millis(100));
        // A connection that the browser drops is its own matter.
        if let Ok(Some(request)) = request
            && let Ok(Some(result)) = answer(request, folder)
        {
            return Ok(result);
        }
        if let Ok(Some(status)) = browser.try_wait() {
            return Err(format!("Chromium ended with {status}: see {}", log.display()));
        }
    }
    Err(format!("no result after {} s: see {}", PATIENCE.as_secs(), log.display()))
}

/// One request: a file of the folder, or the result.
fn answer(mut request: Request, folder: &Path) -> std::io::Result<Option<String>> {
    if *request.method() == Method::Post {
        let mut body = String::new();
        request.as_reader().read_to_string(&mut body)?;
        request.respond(Response::empty(204))?;
        return Ok(Some(body));
    }
    let name = request.url().trim_start_matches('/').to_owned();
    // Only files that lie in the folder itself.
    let file = if name.contains(['/', '\\']) { None } else { File::open(folder.join(&name)).ok() };
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html",
        Some("js") => "text/javascript",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    };
    match (file, Header::from_bytes("Content-Type", kind)) {
        (Some(file), Ok(kind)) => request.respond(Response::from_file(file).with_header(kind))?,
        _ => request.respond(Response::empty(404))?,
    }
    Ok(None)
}

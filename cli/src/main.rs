//! The command line `local-attention`.

fn main() -> std::process::ExitCode {
    local_attention_cli::main()
}

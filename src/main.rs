//! The `forerun` program: everything is in [`forerun::cli`].

fn main() -> std::process::ExitCode {
    forerun::cli::main()
}

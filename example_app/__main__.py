from example_app.demo import main

main(prog_name="python -m example_app")

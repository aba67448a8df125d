from tokenometer.processor.cli.app import main

if __name__ == "__main__":
    main()

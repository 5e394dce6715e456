"""``python main.py fit|validate|test|predict --config ...``"""

from hsakd_pl.cli import main

if __name__ == "__main__":
    main()

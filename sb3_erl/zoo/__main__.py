"""``python -m sb3_erl.zoo train --algo erl_re2 --env Ant-v4``: the Zoo's command line without the start-up file."""

from sb3_erl.zoo.command import main

if __name__ == "__main__":
    main()

"""`vidgen report`: one page that shows what this machine's vidgen can do, and how it was measured."""

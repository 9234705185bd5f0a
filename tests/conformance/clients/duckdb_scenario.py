"""DuckDB's httpfs, unmodified: Parquet and CSV, written in parts and read by ranges. Runs in .venv-peers/s3-clients.

The extension comes from its own wheel, for DuckDB would load it from its site, and an enclave has no network.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import duckdb_extension_httpfs

bucket, scratch = sys.argv[1:]
given = os.environ
extension = next(Path(duckdb_extension_httpfs.__file__).parent.rglob("httpfs.duckdb_extension"))
database = duckdb.connect(config={"extension_directory": scratch})
database.sql(f"INSTALL '{extension}'")
database.sql("LOAD httpfs")
database.sql(f"SET ca_cert_file = '{given['AWS_CA_BUNDLE']}'")
place = urlsplit(given["AWS_ENDPOINT_URL"])
database.sql(
    f"CREATE SECRET (TYPE s3, KEY_ID '{given['AWS_ACCESS_KEY_ID']}', SECRET '{given['AWS_SECRET_ACCESS_KEY']}', "
    f"REGION '{given['AWS_REGION']}', ENDPOINT '{place.netloc}', URL_STYLE 'path', USE_SSL true)"
)


def ask(query: str) -> list[tuple]:  # type: ignore[type-arg]
    return database.sql(query).fetchall()


where = f"s3://{bucket}"
database.sql(f"COPY (SELECT range AS i, md5(range::varchar) AS m FROM range(2000000)) TO '{where}/big.parquet'")
assert ask(f"SELECT count(*), sum(i) FROM '{where}/big.parquet'") == [(2000000, 1999999000000)]
assert ask(f"SELECT i FROM '{where}/big.parquet' WHERE i = 1234567") == [(1234567,)]
database.sql(
    f"COPY (SELECT range AS i, range % 7 AS p FROM range(1000)) TO '{where}/hive' (FORMAT parquet, PARTITION_BY (p))"
)
found = ask(f"SELECT p, count(*) FROM read_parquet('{where}/hive/*/*.parquet', hive_partitioning = true) GROUP BY p")
assert sorted(found) == [(p, 143 if p < 6 else 142) for p in range(7)]
database.sql(f"COPY (SELECT 1 AS a, 'ü' AS b) TO '{where}/t é+.csv' (HEADER)")
assert ask(f"SELECT * FROM '{where}/t é+.csv'") == [(1, "ü")]
assert ask(f"SELECT count(*) FROM glob('{where}/**')") == [(9,)]
refusal = ""
try:
    ask(f"SELECT * FROM '{where}/none.parquet'")
except duckdb.Error as error:
    refusal = str(error)
assert "404" in refusal, refusal
print("duckdb", duckdb.__version__)

"""The query language of CloudWatch Logs Insights."""

from honmaru.services.logs.insights.commands import Query, parse
from honmaru.services.logs.insights.rows import Moment, Row

__all__ = ["Moment", "Query", "Row", "parse"]

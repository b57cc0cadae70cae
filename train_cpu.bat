@echo off
rem Train a first language model on this computer's CPU: train_cpu.bat [OPTIONS of cpulm train]
rem With --overnight it trains on after this window is closed; see docs/overnight.md.
setlocal
set "check=import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))"
for %%p in ("py -3" "py -3.14" "py -3.13" "py -3.12" "py -3.11" "py -3.10" "python") do (
    %%~p -c "%check%" >nul 2>nul && set "found=%%~p" && goto train
)
echo error: there is no Python 3.10 to 3.14 here 1>&2
echo hint: install one of them from https://www.python.org/downloads/ and run this again 1>&2
exit /b 1
:train
%found% "%~dp0scripts\train_cpu.py" %*
exit /b %errorlevel%
